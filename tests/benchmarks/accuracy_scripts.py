"""The scripts of benchmarks/accuracy as modules, with results and state in a folder of a test."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "accuracy"
NAMES = (
    "experiment",
    "trajectories",
    "history",
    "ablation_starts",
    "ablation_tables",
    "ablation",
    "rmd17",
    "dimers",
    "drift",
    "dynamics",
    "card_tables",
    "card_page",
    "relations",
    "front",
    "side_by_side",
    "model_card",
)


def load_scripts() -> dict[str, ModuleType]:
    """As a script's own folder is on the path when it runs."""
    import importlib

    sys.path.insert(0, str(FOLDER))
    try:
        return {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))


SCRIPTS = load_scripts()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of a test reaches the repository's results or state."""
    for script in SCRIPTS.values():
        for name in ("RESULTS", "STATE"):
            if hasattr(script, name):
                monkeypatch.setattr(script, name, tmp_path / name.lower())
    return tmp_path
