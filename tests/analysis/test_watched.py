"""The guard beside a suite: it sees what breaks, and changes nothing."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlpot.analysis.batch as batch_module
from benchmarks.stability.goals import goals
from benchmarks.stability.tables import markdown
from mlpot.analysis.flags import guarded
from mlpot.analysis.records import Folder, read_trajectory
from mlpot.analysis.scenarios import Scenario
from mlpot.analysis.stability import Content, run
from mlpot.analysis.subjects import Subject, subject
from mlpot.analysis.summary import analyze
from mlpot.data.record import Record
from mlpot.deploy.load import load
from mlpot.train.guard import add_guard
from tests.analysis.conftest import HARMONIC, small


@pytest.fixture(scope="module")
def known(soft: Subject, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """`soft`, with statistics of whole methanol; on its surface methanol falls apart."""
    path = tmp_path_factory.mktemp("models") / "known.safetensors"
    assert soft.model is not None
    shutil.copy(soft.model, path)
    methanol, rng, records = small("CH3OH"), np.random.default_rng(0), []
    teacher = load(path, engine="eager")
    for _ in range(60):
        moved = methanol.positions + 0.05 * rng.standard_normal(methanol.positions.shape)
        forces = teacher(methanol.numbers, moved).forces + 0.01 * rng.standard_normal(moved.shape)
        records.append(Record(methanol.numbers, moved, forces=forces, group="one"))
    add_guard(path, records)
    return subject(str(path), engine="eager")


@pytest.fixture
def hot() -> Content:
    """Two runs of 0.3 ps, in which bonds of `soft` open."""
    scenario = Scenario("ladder", ("standard",), (300.0,), 0.3, 2, interval=2.0)
    return Content([scenario], [small("CH3OH")])


def runs_of(folder: Folder) -> dict[str, dict[str, Any]]:
    return {r["key"]: r for r in folder.records() if r["kind"] == "run"}


def test_the_guard_tells_what_breaks_and_moves_nothing(
    soft: Subject, known: Subject, hot: Content, tmp_path: Path
) -> None:
    plain, watched = run(soft, hot, tmp_path / "plain"), run(known, hot, tmp_path / "watched")
    without, found = runs_of(plain), runs_of(watched)
    assert set(without) == set(found)  # the same keys: nobody has to simulate again
    for key, record in found.items():
        assert record["guarded"] and not without[key]["guarded"] and without[key]["flag"] is None
        flag = record["flag"]
        assert 0 <= flag["ps"] <= 0.3 and flag["grade"] > 1 and 0 <= flag["atom"] < 6
        mine, other = (f.trajectory(record["id"]) for f in (watched, plain))
        np.testing.assert_array_equal(read_trajectory(mine), read_trajectory(other))
    summary = analyze(watched.path)
    (group,) = summary["groups"]
    told = group["guard"]
    assert told["runs"] == told["broke"] == 2 and told["whole"] == 0
    assert told["flagged_before"] == 2 and told["lead_ps"] > 0
    assert all("positions" not in r["flag"] for r in summary["runs"])
    assert all(0.0 < r["flag"]["departure"] < 0.5 for r in summary["runs"])
    assert analyze(plain.path)["groups"][0]["guard"] is None
    summary["goals"] = [goal._asdict() | {"met": goal.met} for goal in goals(summary)]
    assert re.search(r"\| known \| 0 of 0 \| 2 of 2 \| \d+ \| \d \| 0 of 0 \|", markdown([summary]))


def test_a_bond_that_is_lost_before_the_first_step_is_flagged(
    known: Subject, hot: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is relaxed: what the model then makes of the molecule may look known to it."""
    (methanol,) = hot.molecules
    crude = methanol.positions.copy()
    near = np.argsort(np.linalg.norm(crude - crude[-1], axis=1))[1]
    crude[-1] -= 0.3 * (crude[-1] - crude[near])
    start = replace(methanol, name="crude", positions=crude)
    end = crude.copy()
    end[-1] += crude[-1] - crude[near]  # 0.77 Å longer
    found = {start.key: end, methanol.key: methanol.positions}
    monkeypatch.setattr(batch_module, "relax", lambda model, of: [found[m.key] for m in of])
    both = Content(hot.scenarios, [methanol, start])
    folder = run(known, both, tmp_path / "suite")
    records = runs_of(folder).values()
    flags = {
        m.name: [r["flag"] for r in records if r["molecule"] == m.name] for m in (start, methanol)
    }
    assert len(flags["crude"]) == 2
    for flag in flags["crude"]:
        assert flag["ps"] == 0.0 and "after minimising" in flag["reason"]
        np.testing.assert_allclose(flag["positions"], crude, atol=1e-4)
    for flag in flags[methanol.name]:
        assert flag["ps"] > 0.0


def test_flags_survive_an_interruption(
    known: Subject, hot: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runs_of(run(known, hot, tmp_path / "whole"))
    monkeypatch.setattr(batch_module, "CHECKPOINT", 0.0)
    save, saved = batch_module._Going._save, []

    def cut(self: Any) -> None:
        save(self)
        saved.append(self.done)
        if len(saved) == 30:
            raise KeyboardInterrupt

    monkeypatch.setattr(batch_module._Going, "_save", cut)
    with pytest.raises(KeyboardInterrupt):
        run(known, hot, tmp_path / "parts")
    parts = runs_of(run(known, hot, tmp_path / "parts"))
    assert {k: r["flag"] for k, r in parts.items()} == {k: r["flag"] for k, r in whole.items()}
    assert all(r["flag"]["ps"] < 0.06 for r in parts.values())  # from before the cut


def test_what_began_without_a_guard_is_not_called_guarded(
    known: Subject, hot: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state of an earlier version: nobody looked on before it was written."""
    monkeypatch.setattr(batch_module, "CHECKPOINT", 0.0)
    save = batch_module._Going._save

    def cut(self: Any) -> None:
        save(self)
        with np.load(self.state) as file:
            content = dict(file)
        content["told"] = np.array(json.dumps(json.loads(content["told"].item())[:2]))
        np.savez(self.state, **content)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_module._Going, "_save", cut)
    with pytest.raises(KeyboardInterrupt):
        run(known, hot, tmp_path / "suite")
    monkeypatch.setattr(batch_module._Going, "_save", save)
    found = runs_of(run(known, hot, tmp_path / "suite"))
    assert not any(r["guarded"] or r["flag"] for r in found.values())


def test_a_calculator_has_no_guard(hot: Content, tmp_path: Path) -> None:
    found = runs_of(run(subject(HARMONIC), hot, tmp_path / "suite"))
    assert not any(r["guarded"] for r in found.values())


def test_only_flags_while_all_bonds_are_whole_are_early() -> None:
    def line(broke: bool, ps: float | None, departure: float = 0.1, why: str = "") -> Any:
        flag = {"ps": ps, "atom": 0, "grade": 4.0, "reason": why, "departure": departure}
        told = None if ps is None else flag
        return {"guarded": True, "broke": broke, "flag": told, "stable_ps": 5.0}

    runs = [line(True, 4.0), line(True, 4.98, 0.4, "C 0 - H 1")]  # before it broke
    runs += [line(True, 4.99, 0.6), line(True, 5.01, 0.4), line(True, None)]  # too late, or not
    runs += [line(False, None), line(False, 2.0), {"broke": True}]
    # what relaxing broke is told when it has happened
    runs += [{**line(True, 0.0), "stable_ps": 0.0}, {**line(True, None), "stable_ps": 0.0}]
    told = guarded(runs)
    assert told is not None and json.loads(json.dumps(told)) == told
    assert (told["runs"], told["broke"], told["flagged_before"]) == (9, 5, 2)
    assert (told["broke_relaxing"], told["flagged_relaxing"]) == (2, 1)
    assert (told["whole"], told["flagged_whole"], told["for_length"]) == (2, 1, 1)
    assert told["lead_ps"] == pytest.approx(0.51)
    assert guarded([{"broke": True}]) is None


def broken(count: int, before: int, **more: Any) -> list[dict[str, Any]]:
    """Runs of a summary that broke, the first of them flagged before."""
    flag = {"ps": 1.0, "departure": 0.1, "reason": ""}
    base = {"broke": True, "guarded": True, "ensemble": "nvt", "end_temperature": None}
    base |= {
        "picoseconds": 20.0,
        "stable_ps": 2.0,
        "molecule": "one",
        "cause": "bond C1-H2",
        **more,
    }
    runs = [{**base, "flag": flag if i < before else None} for i in range(count)]
    return [{**run, "id": f"{more}-{i}"} for i, run in enumerate(runs)]


def of_the_guard(runs: list[dict[str, Any]], **whole: tuple[int, int]) -> list[Any]:
    """Goals about false and early flags; scenario -> whole runs at 300 K, and flagged of them."""
    groups = []
    for scenario, (count, flagged) in whole.items():
        told = {"whole": count, "flagged_whole": flagged, "broke": 0, "flagged_before": 0}
        kind = {"scenario": scenario, "picoseconds": 20.0, "ensemble": "nvt", "runs": 60}
        kind |= {"fraction": [1.0, 1.0, 1.0], "end_temperature": None, "temperature": 300.0}
        groups += [{**kind, "guard": told}, {**kind, "temperature": 1000.0, "guard": told}]
    found = goals({"groups": groups, "refusals": [], "runs": runs})
    return [goal for goal in found if "guard" in goal.text]


def test_goals_of_the_guard_are_decided_by_their_intervals() -> None:
    def met(count: int, flagged: int, broke: int, before: int) -> list[bool | None]:
        return [g.met for g in of_the_guard(broken(broke, before), ladder=(count, flagged))]

    assert met(404, 0, 80, 80) == [True, True]
    assert met(403, 4, 80, 70) == [None, False]
    assert met(60, 0, 20, 20) == [None, None]  # all of them, but of how many?
    assert met(60, 1, 20, 18) == [None, None]  # below, but the goal is inside the interval
    assert met(60, 6, 20, 12) == [False, False]
    assert met(0, 0, 0, 0) == [None, None]


def test_what_counts_for_the_goals_of_the_guard() -> None:
    """False flags: sound chemistry at 300 K. Early ones: breaks on the way, and ramps none."""
    short = broken(7, 0, picoseconds=1.0)  # of the mode fast
    quiet, nothing = of_the_guard(
        short, ladder=(60, 0), long=(5, 1), groups=(21, 9), distorted=(20, 3)
    )
    assert nothing.runs == 0 and nothing.value is None
    assert quiet.runs == 65 and quiet.value == pytest.approx(64 / 65)
    at_once = broken(9, 9, molecule="two", stable_ps=0.0)
    for run_ in at_once:
        run_["flag"] = {**run_["flag"], "ps": 0.0}
    ramp = broken(5, 5, end_temperature=3000.0)
    unguarded = broken(4, 4, guarded=False)
    _, early = of_the_guard([*broken(3, 2), *at_once, *ramp, *unguarded], ladder=(1, 0))
    assert early.runs == 3 and early.value == pytest.approx(2 / 3)
