"""The refinement benchmark: tiny but real, and its page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.refine import experiment
from benchmarks.refine.experiment import COLD, HOT, MODES, Experiment, complete
from benchmarks.refine.tables import END, START, block, page, verdicts, write_block
from mlpot.active.refine import QUIET, SPENT
from mlpot.active.settings import RefineSettings
from mlpot.errors import DataError, InputError
from mlpot.train.loop import quiet


def test_a_refinement_is_measured_round_by_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tblite", reason="GFN2-xTB is not installed: mlpot[xtb]")
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
    assert found["settings"]["scenario"]["timestep"] == 1.0
    assert found["settings"]["recipe"]["loop"]["optimizer"] == "muon"
    text = page(found)
    assert "- 1000 K: the refined model lasts " in text and "at random" in text
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
    assert "\nold\n" not in readme.read_text() and "stable at 1000 K" in readme.read_text()


def test_controls_that_cannot_be_as_large_are_refused_before_anything_is_done(
    tmp_path: Path,
) -> None:
    """The reference's second halves hold 150 frames; refinement may take no more."""
    greedy = RefineSettings((300.0,), ps=0.1, replicas=2, rounds=5, frames=29, initial=10)
    wrong = replace(MODES["dev"], refinement=greedy)
    with pytest.raises(DataError, match=r"may label 155 frames, .*'as many at random.*are 150"):
        Experiment(wrong, tmp_path / "x.json", tmp_path / "state", print)
    assert not any(tmp_path.iterdir())
    one = Experiment(MODES["standard"], tmp_path / "x.json", tmp_path / "state", print)
    found = one._controls(0, MODES["standard"].frames + MODES["standard"].labels)
    assert {name: len(frames) for name, frames in found.items()} == {COLD: 150, HOT: 150}


def test_simulations_that_fail_are_told_and_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet()
    lines: list[str] = []
    one = Experiment(MODES["dev"], tmp_path / "dev.json", tmp_path / "state", lines.append)
    start = one._trained(0, one.problem.learn[:20], tmp_path / "start", None)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "verdicts", lambda *given: ([], "2 of 2 simulations failed: x"))
        one._measure(0, "start", start, 20)
    assert one.result["failed"] == {"start | 0": "2 of 2 simulations failed: x"}
    assert not one.result["models"] and lines[-1] == "start | 0: 20 labels, 2 of 2 simulations " + (
        "failed: x"
    )
    one._measure(0, "start", start, 20)
    assert not one.result["failed"] and len(one.result["models"]["start | 0"]["runs"]) == 2


def model(name: str, draw: int, times: list[float]) -> dict[str, Any]:
    runs = [{"temperature": 1000.0, "stable_ps": t, "broke": t < 10.0} for t in times]
    return {"name": name, "draw": draw, "runs": runs}


def measured(**times: list[float]) -> dict[str, Any]:
    """Results of two equal repeats of two rounds: which model -> ps of each run."""
    names = {"start": "start", "first": "after round 0", "last": "after round 1", "cold": COLD}
    found = {f"{names[n]} | {d}": model(names[n], d, t) for d in (0, 1) for n, t in times.items()}
    rounds = [{"round": n, "trained": n < 2} for n in range(3)]
    return {
        "settings": {"temperatures": [1000.0], "picoseconds": 10.0},
        "refinements": {
            str(d): {"rounds": rounds, "outcome": end} for d, end in enumerate((QUIET, SPENT))
        },
        "models": found,
    }


@pytest.mark.parametrize(
    ("start", "last", "says"),
    [
        ([1.0] * 4, [5.0] * 4, "lasts 5 times as long as the start;"),
        ([1.0] * 4, [10.0] * 4, "lasts ≥ 10 times as long as the start;"),
        ([2.0] * 4, [1.0] * 4, "lasts 0.5 times as long as the start;"),
        ([0.5, 1.0, 2.0, 4.0], [1.0, 1.5, 2.0, 2.5], "the start (no clear difference);"),
        ([10.0] * 4, [10.0] * 4, "lasts to the end, as does the start;"),
    ],
)
def test_the_verdict_says_whether_stable_time_was_extended(
    start: list[float], last: list[float], says: str
) -> None:
    result = measured(start=start, first=[9.0] * 4, last=last, cold=[0.5] * 4)
    line, quiet = verdicts(result)
    assert line.startswith("- 1000 K: the refined model lasts ") and says in line, line
    assert " times as long as the one from as many frames at 300 K." in line
    assert quiet == "- The guard was quiet at every temperature in the end in 1 of 2 repeats."


def test_a_repeat_is_complete_when_every_model_has_been_measured() -> None:
    """Or the start alone where nothing was trained, so that there is nothing to set beside it."""
    result = measured(start=[1.0] * 4, first=[2.0] * 4, last=[5.0] * 4, cold=[0.5] * 4)
    assert not complete(result, 0)
    result["models"][f"{HOT} | 0"] = model(HOT, 0, [2.0] * 4)
    assert complete(result, 0) and not complete(result, 1) and not complete(result, 2)
    last = result["models"].pop("after round 1 | 0")
    assert not complete(result, 0), last
    result["refinements"]["1"] = {"rounds": [{"round": 0, "trained": False}]}
    assert complete(result, 1)


def test_another_machine_begins_a_repeat_again_unless_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder holds models, and they are not in the results."""
    one = Experiment(MODES["dev"], tmp_path / "dev.json", tmp_path / "state", print)
    told = measured(start=[1.0] * 4, first=[2.0] * 4, last=[5.0] * 4, cold=[0.5] * 4)
    one.result |= {name: told[name] for name in ("refinements", "models")}
    one.result["models"][f"{HOT} | 0"] = model(HOT, 0, [2.0] * 4)
    one.result["failed"]["after round 1 | 1"] = "2 of 8 simulations failed"

    def stop(*given: object) -> None:
        raise InterruptedError

    one.run()  # has one repeat, which is complete
    monkeypatch.setattr(one, "_trained", stop)
    one.mode = replace(one.mode, repeats=2)
    with pytest.raises(InterruptedError):
        one.run()
    assert list(one.result["refinements"]) == ["0"] and not one.result["failed"]
    assert {m["draw"] for m in one.result["models"].values()} == {0}
    (tmp_path / "state" / "draw-1").mkdir(parents=True)
    one.result["models"]["start | 1"] = model("start", 1, [1.0] * 4)
    with pytest.raises(InterruptedError):
        one.run()
    assert "start | 1" in one.result["models"]


def test_a_refinement_on_its_way_has_no_verdict() -> None:
    """The model of a round before the last is not what refinement comes to."""
    assert verdicts(measured(start=[1.0] * 4, first=[9.0] * 4))[0] == "- 1000 K: not measured."
    failed = measured(start=[1.0] * 4) | {"failed": {"after round 1 | 0": "2 of 8 failed"}}
    assert verdicts(failed)[-1] == "- Not counted, after round 1 | 0: 2 of 8 failed."
