"""Tiny molecules, models and calculators for suites that take a second."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from mlpot.analysis.molecules import Molecule
from mlpot.analysis.scenarios import Scenario
from mlpot.analysis.stability import Content
from mlpot.analysis.subjects import Subject, subject
from tests.helpers import save_random_model

ROOT = Path(__file__).resolve().parents[2]

HARMONIC = "tests.analysis.calculators:Harmonic"


def small(name: str = "CH3OH", group: str = "standard") -> Molecule:
    """A molecule of ASE's G2 set."""
    atoms = molecule(name)
    return Molecule(name, group, atoms.numbers.astype(np.int64), atoms.positions)


@pytest.fixture(scope="session")
def soft(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Random weights on a flat energy surface: nothing stays bound, and nothing explodes."""
    path = tmp_path_factory.mktemp("models") / "soft.safetensors"
    return subject(
        str(save_random_model(path, name="soft", layers=1, scale=0.05, floors={})), engine="eager"
    )


@pytest.fixture
def harmonic() -> Subject:
    """Springs between all atoms: nothing breaks."""
    return subject(HARMONIC)


@pytest.fixture
def content() -> Content:
    """Two molecules, two temperatures, two seeds: eight runs of 20 fs in one batch of a model."""
    scenario = Scenario("ladder", ("standard",), (300.0, 600.0), 0.02, 2, interval=2.0)
    return Content([scenario], [small("CH3OH"), small("H2O")])


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
