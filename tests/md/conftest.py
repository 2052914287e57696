"""A small random model and a structure, so that these tests need no zoo."""

from pathlib import Path

import pytest

from mlpot.md.structure import Structure, read_structure
from tests.helpers import save_random_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session")
def soft_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights on a flat energy surface: MD stays calm, but nothing stays bound."""
    path = tmp_path_factory.mktemp("models") / "soft.safetensors"
    return save_random_model(path, name="soft", layers=1, scale=0.05, floors={})


@pytest.fixture
def alanine() -> Structure:
    return read_structure(EXAMPLES / "alanine-dipeptide.pdb")
