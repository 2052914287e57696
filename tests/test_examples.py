"""Every example runs from the root of a clone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("0*.py"))


def test_there_are_three_and_they_are_short() -> None:
    assert [s.name[:2] for s in SCRIPTS] == ["01", "02", "03"]
    assert all(len(s.read_text(encoding="utf-8").splitlines()) < 40 for s in SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example(script: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(script), "--fast"],
        cwd=tmp_path,  # results go to runs/ here, not into the clone
        env=os.environ | {"MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert any((tmp_path / "runs").rglob("*"))
