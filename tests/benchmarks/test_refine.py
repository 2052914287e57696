"""The refinement benchmark: tiny but real, and its page."""

import json
from pathlib import Path

import pytest

from benchmarks.refine import experiment
from benchmarks.refine.experiment import COLD, MODES, Experiment
from benchmarks.refine.tables import END, START, block, page, write_block
from mlpot.errors import InputError
from mlpot.train.loop import quiet

pytest.importorskip("tblite", reason="GFN2-xTB is not installed: mlpot[xtb]")


def test_a_refinement_is_measured_round_by_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet()
    lines: list[str] = []
    results = tmp_path / "dev.json"
    Experiment(MODES["dev"], results, tmp_path / "state", lines.append).run()
    found = json.loads(results.read_text())
    start, after, cold, hot = found["models"].values()
    assert list(found["models"])[1] == "after round 0 | 0" and cold["name"] == COLD
    assert start["frames"] == 20 < after["frames"] and list(start["test_meV"])[-1] == "1000"
    assert [len(m["runs"]) for m in (start, after)] == [2, 2]
    rounds = found["refinements"]["0"]["rounds"]
    assert rounds[0]["frames"]["labelled"] == after["frames"] - 20
    assert after["frames"] == cold["frames"] == hot["frames"]
    assert len({m["sha256"] for m in found["models"].values()}) == 4
    text = page(found)
    assert "| after round 0 | " in text and text.count("of 2 |") == 4

    def never(*given: object, **options: object) -> None:
        raise AssertionError("done already")

    for name in ("simulate", "evaluate"):
        monkeypatch.setattr(experiment, name, never)
    Experiment(MODES["dev"], results, tmp_path / "state", lines.append).run()
    with pytest.raises(InputError, match="begun with another .*frames"):
        Experiment(MODES["standard"], results, tmp_path / "state", lines.append)
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{START}\nold\n{END}\nb\n")
    write_block(readme, block(found))
    assert "old" not in readme.read_text() and "stable at 1000 K" in readme.read_text()
