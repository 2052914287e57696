"""benchmarks/guard: reports are of the product's grade, and say what was measured with what."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from benchmarks.guard import brief, calibrate, cost, runs, simulated
from benchmarks.guard.areas import auc, blocks, interval, molecules, verdict
from benchmarks.guard.calibrate import JOINED, OURS, areas, file_of, page, settings_of
from benchmarks.guard.features import Atoms, look
from benchmarks.guard.parts import Part, find
from benchmarks.guard.runs import chosen
from benchmarks.guard.simulated import Run, counted, steady_bonds
from mlpot.analysis.intervals import fraction
from mlpot.data.formats import read
from mlpot.data.record import Record
from mlpot.data.splits import Split
from mlpot.deploy.grader import FeatureGrader, make_grader
from mlpot.deploy.load import load
from mlpot.errors import InputError
from mlpot.md.structure import read_structure
from mlpot.models.checkpoint import load_extrapolation, load_potential, save
from mlpot.train.guard import add_guard
from mlpot.train.loop import quiet
from tests.helpers import ethanol, save_random_model

FEW = {
    k: calibrate.VARIANTS[k] for k in ("predicted force alone", "Mahalanobis, last hidden layer")
}


def frames(count: int, width: float, seed: int = 0) -> list[Record]:
    rng, atoms = np.random.default_rng(seed), ethanol()
    moves = width * rng.standard_normal((count, 9, 3))
    numbers = atoms.numbers.astype(np.int64)
    return [
        Record(numbers, atoms.positions + m, energy=-4000.0, forces=-10 * m, group=f"{i}")
        for i, m in enumerate(moves)
    ]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "guarded.safetensors"
    save_random_model(path, name="guarded", layers=1, scale=0.05, floors={})
    add_guard(path, frames(60, 0.05))
    return path


# --- calibrate -----------------------------------------------------------------------------------


def test_a_frame_is_graded_by_its_worst_atom_as_the_guard_does() -> None:
    """One atom stands out in the wrong frames; in the others all are a little high."""
    owner = np.repeat(np.arange(4), 10)
    grades = np.full(40, 0.5)
    grades[::10][2:] = 1.0  # the first atom of the last two frames
    grades[20:][grades[20:] < 1.0] = 0.1
    error = np.where(owner < 2, 0.1, 9.0)
    atoms = Atoms(np.full(40, 6), owner, error, {}, grades)
    inside = atoms._replace(error=np.full(40, 0.1))
    found = areas([atoms.grade], [atoms], inside)
    assert found["frame"] == 1.0 and found["frame_rms"] == 0.0


def test_intervals_of_areas_are_over_molecules() -> None:
    """As wide as many frames of few molecules are; half where nothing is told apart."""
    rng = np.random.default_rng(0)
    positive = rng.random(4000) < 0.3
    score = rng.standard_normal(4000) + 1.5 * positive
    alone = interval(score, positive, np.arange(4000))
    assert alone is not None and alone[0] < auc(score, positive) < alone[1]  # type: ignore[operator]
    yes, no = int(positive.sum()), int((~positive).sum())
    area = auc(score, positive) or 0.0
    q = area / (2 - area), 2 * area**2 / (1 + area)  # Hanley and McNeil, Radiology 143, 29 (1982)
    variance = area * (1 - area) + (yes - 1) * (q[0] - area**2) + (no - 1) * (q[1] - area**2)
    error = np.sqrt(variance / (yes * no))
    assert (alone[1] - alone[0]) / (2 * 1.96) == pytest.approx(error, rel=0.15)
    copied = [np.repeat(x[:400], 10) for x in (score, positive)]
    tens = interval(*copied, np.repeat(np.arange(400), 10))  # ten of the same say what one does
    assert tens is not None
    assert (tens[1] - tens[0]) / (alone[1] - alone[0]) == pytest.approx(np.sqrt(10), rel=0.2)
    same = interval(np.ones(40), positive[:40], np.arange(40))
    assert same == [0.5, 0.5]
    assert interval(score, np.zeros(4000, dtype=bool), np.arange(4000)) is None


def test_the_goal_of_areas_needs_their_intervals() -> None:
    def told(frame: float, *ends: float) -> str:
        row = {"frame": frame, "atom": 0.95, "atom_interval": [0.93, 0.97]}
        return verdict({**row, "frame_interval": list(ends) or None})

    assert told(0.89) == "missed" and told(0.95, 0.91, 0.97) == "met"
    assert told(0.92) == "met by these values; their intervals are not known"
    assert told(0.92, 0.88, 0.95) == "met by these values, and not by their whole intervals"


def test_what_resembles_each_other() -> None:
    records = [replace(r, group=g) for r, g in zip(frames(4, 0.1), "abab", strict=True)]
    assert molecules(records, 5).tolist() == [5, 6, 5, 6]
    assert blocks(frames(27, 0.1)).tolist() == [0] * 13 + [1] * 13 + [2]


def test_the_grade_is_that_of_the_statistics_in_the_file(
    guarded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not of statistics fitted anew to the frames at hand, which are wider here."""
    records = frames(60, 0.1, seed=1)
    split = Split(np.arange(30), np.arange(30, 45), np.arange(45, 60), 0, "group", 60, "")
    monkeypatch.setattr(calibrate, "read_all", lambda paths: records)
    monkeypatch.setattr(calibrate, "split_held_out", lambda records, path: split)
    monkeypatch.setattr(calibrate, "VARIANTS", FEW)
    monkeypatch.setitem(calibrate.FRAMES, "dev", (30, 15))
    told = calibrate.druglike("dev", guarded)
    grade = FeatureGrader(guarded).bind(ethanol().numbers, skin=0.0)
    worst = [grade(records[i].positions).max() for i in split.test]
    assert told["above"]["test"]["median"] == pytest.approx(np.median(worst), rel=1e-4)
    info = load_potential(guarded)[1]
    assert info.extrapolation is not None
    assert told["statistics"] == info.extrapolation.model_dump() and told["sha256"] == info.sha256
    assert list(told["auc"]) == [OURS, *FEW]


def test_acac_and_its_committee(
    guarded: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet()
    monkeypatch.setattr(calibrate, "read", lambda path: read(path)[:90])
    monkeypatch.setattr(calibrate, "VARIANTS", FEW)
    monkeypatch.setitem(calibrate.STEPS, "dev", 2)
    told = calibrate.acac("dev", guarded, tmp_path, members=2)
    assert list(told["auc"]) == [OURS, "committee of 2", JOINED, *FEW]
    info = load_potential(tmp_path / "seed-0" / "model.safetensors")[1]
    assert told["sha256"] == info.sha256 and told["statistics"]["frames"] == 40
    other = load_potential(tmp_path / "seed-1" / "model.safetensors")[1]
    assert other.sha256 != info.sha256
    assert calibrate.committee_grades([tmp_path], [], []) == {}


def test_the_committees_grade_is_that_of_the_product(guarded: Path, tmp_path: Path) -> None:
    """`mlpot md --guard-model a,b` takes the larger of the two, atom by atom."""
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    rng = np.random.default_rng(0)
    for seed, path in enumerate(paths, 1):
        save_random_model(path, seed=seed, layers=1, scale=0.05, floors={})
        add_guard(path, frames(60, 0.05))
        model, info = load_potential(path)
        told = {"validation": {"force_rmse": 0.02 * rng.random()}}
        save(model, info.model_copy(update={"provenance": told}), path, load_extrapolation(path))
    records = frames(5, 0.1, seed=3)
    asked = look(load_potential(paths[0])[0], records, load_extrapolation(paths[0]))
    (joined,) = calibrate.committee_grades(paths, [records], [asked])[JOINED]
    grade = make_grader(",".join(map(str, paths))).bind(ethanol().numbers, skin=0.0)
    expected = np.concatenate([grade(r.positions) for r in records])
    assert joined == pytest.approx(expected, rel=1e-3)
    assert 0 < (joined > asked.grade).sum() < len(joined)  # each is the larger one somewhere


def test_the_page_says_what_it_is_of(
    guarded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    area = {"atom": 0.91, "frame": 0.92, "frame_rms": 0.93, "frame_interval": [0.88, 0.95]}
    part: dict[str, Any] = {
        "auc": {OURS: area},
        "bytes": 8123,
        "asked": {"atoms": 1000, "frames": 40},
        "large": {"atoms": 0.1, "frames": 0.2},
        "above": {"test": {"frames": 40, "median": 0.4, "above_1": 0.5} | {"above_1.5": 0.0}},
    }
    part["above"]["test"]["above_2"] = 0.0
    monkeypatch.setattr(calibrate, "acac", lambda *given: part)
    monkeypatch.setattr(calibrate, "druglike", lambda *given: part)
    monkeypatch.setattr(calibrate, "RESULTS", tmp_path)
    words = ["run", "--mode", "fast", "--model", str(guarded), "--folder", str(tmp_path / "runs")]
    done = CliRunner().invoke(calibrate.app, words)
    assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "calibration-fast-guarded.json").read_text())
    assert kept["settings"] == settings_of("fast", guarded, 3)
    assert kept["commit"] and kept["machine"]
    settings = settings_of("dev", guarded, 3)
    assert settings["acac"]["loop"]["steps"] == calibrate.STEPS["dev"]
    told = {"settings": settings, "commit": "abc+", "machine": "x86", "acac": part}
    text = page(told | {"druglike": part})
    assert f"| {OURS} | 0.910 | 0.920 | 0.930 | 0.910 | 0.920 | 0.930 |" in text
    assert (
        "intervals of the grade's: 0.880 to 0.950 (frame). Statistics in the file: 8.1 kB" in text
    )
    sha = load_potential(guarded)[1].sha256
    assert f"guarded {sha[:8]}. Commit abc+; x86." in text
    assert file_of("dev", "guarded").name == "calibration-dev-guarded.json"


# --- runs ----------------------------------------------------------------------------------------


def test_the_parts_are_enough_for_their_claims() -> None:
    calm = chosen("calm", "standard")
    jobs = calm.jobs()
    count = sum(count for *_, count in jobs)
    assert count >= 300 and {t for _, t, _ in jobs} == {300.0}
    assert fraction(0, count).high < 0.01
    assert len(find("ac-ala10-nme").molecule.numbers) > 100 and "ac-ala10-nme" in calm.large
    breaks = chosen("breaks", "standard", "bicyclopentylamine")
    assert breaks.temperatures == (600.0, 800.0, 1000.0, 1200.0) and breaks.timestep == 0.5
    # 200 µs an atom and step
    cost = breaks.seconds({"bicyclopentylamine": 15})
    assert cost == pytest.approx(15 * 4 * 24 * 10_000 * 200e-6)
    with pytest.raises(InputError, match="--molecules"):
        chosen("breaks", "standard")
    with pytest.raises(InputError, match="no molecule 'benzyne'"):
        find("benzyne")


def test_usual_lengths_are_those_of_labelled_frames_where_there_are_some() -> None:
    known, other = find("bicyclopentylamine"), find("ethanol")
    assert known.lengths is not None and other.lengths is None
    bonds = steady_bonds(other.molecule.numbers, other.molecule.positions)
    assert len(bonds) == 8
    water = np.array([[0, 0, 0], [0.97, 0, 0], [-0.24, 0.93, 0], [2.8, 0, 0]])
    water = np.vstack([water, [[3.1, 0.9, 0], [3.1, -0.9, 0]]])
    shared = steady_bonds(np.array([8, 1, 1, 8, 1, 1]), water)
    assert [0, 1] not in shared.tolist() and len(shared) == 3  # in a hydrogen bond


@pytest.mark.parametrize(
    ("flag", "broke", "row"),
    [
        (100.0, 300.0, (1, 1, 0)),
        (300.0, 300.0, (1, 0, 0)),  # from the same step is too late
        (np.inf, 300.0, (1, 0, 0)),
        (100.0, np.inf, (0, 0, 1)),
        (np.inf, np.inf, (0, 0, 0)),
    ],
)
def test_a_flag_counts_if_it_comes_before_the_break(flag: float, broke: float, row: tuple) -> None:
    told = counted([Run(flag, broke)])
    assert (told["broken"], told["flagged_before_break"], told["flagged_but_whole"]) == row
    assert told["lead_fs"] == ([200.0] if row[1] else [])
    assert told["missed_fs"] == ([300.0] if row[0] > row[1] else [])


def run_command(*args: object) -> Result:
    words = ["run", "--part", "breaks", "--molecules", "ethanol", *map(str, args)]
    return CliRunner().invoke(runs.app, words)


def test_runs_are_kept_with_all_that_decides_them(
    guarded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flat surface: ethanol falls apart, and the guard sees it."""
    monkeypatch.setattr(runs, "DEV", tmp_path)
    hot = Part((), (300.0, 2000.0), 0.15, 3)
    monkeypatch.setitem(runs.MODES["dev"], "breaks", hot)
    monkeypatch.setattr(simulated, "BATCH_ATOMS", 18)  # two batches
    monkeypatch.setattr(runs, "BATCH_ATOMS", 18)
    result = run_command("--model", guarded, "--grades", tmp_path / "grades")
    assert result.exit_code == 0, result.output
    file = tmp_path / "runs-breaks-guarded.json"
    told = json.loads(file.read_text())
    row = told["rows"]["ethanol | 2000"]
    assert row["runs"] == 3 and row["broken"] > 0 and row["flagged_before_break"] > 0
    assert all(0 < fs <= 150 for fs in row["lead_fs"])
    s = told["settings"]
    assert s["model"]["sha256"] == load_potential(guarded)[1].sha256
    assert s["rule"] == {"interval": 100, "look": 10, "checks": 3, "line": 1.0, "sure": 3.0}
    assert s["part"]["timestep"] == 0.5 and s["part"]["ps"] == 0.15
    assert told["command"].endswith(
        "--part breaks --mode dev --model guarded --molecules ethanol --threads 1"
    )
    names = {p.name for p in (tmp_path / "grades").iterdir()}
    assert names == {f"guarded-ethanol-{t}-{first}.npz" for t in (300, 2000) for first in (0, 2)}

    def never(*given: object) -> None:
        raise AssertionError("done already")

    monkeypatch.setattr(runs, "simulate", never)
    assert run_command("--model", guarded).exit_code == 0
    refused = run_command("--model", guarded, "--ps", 0.2).exception
    assert isinstance(refused, InputError) and "begun with another part" in str(refused)
    other = tmp_path / "other.safetensors"
    save_random_model(other, name="guarded", seed=5, layers=1, scale=0.05, floors={})
    add_guard(other, frames(60, 0.05))
    refused = run_command("--model", other).exception  # of the same name
    assert isinstance(refused, InputError) and "begun with another model" in str(refused)
    text = runs.page([told])
    assert "## breaks: guarded" in text and "ns or less: whole runs that were flagged" in text


def test_the_table_has_intervals_and_both_rates() -> None:
    row = {"molecule": "m", "kelvin": 1000.0, "runs": 100, "ps": 5.0, "broken": 40}
    row |= {"flagged_before_break": 39, "flagged_but_whole": 30, "lead_fs": [10.0, 30.0]}
    row["first_for_its_lengths"] = 38
    hot = runs.verdict([row])
    assert "whole runs that were flagged: 30 of 60, 50 % (37.7 to 62.3)" in hot
    assert "flagged before the break: 39 of 40, 97.5 % (87.1 to 99.6)" in hot
    assert hot.endswith("20 fs before it on the median (38 for a length)")
    calm = row | {"kelvin": 300.0, "runs": 404, "broken": 0, "flagged_but_whole": 0}
    calm["lead_fs"] = []
    assert runs.verdict([calm]) == (
        "- 300 K, 2.02 ns or less: false stops: 0 of 404, 0 % (0 to 0.942)"
    )


# --- cost ----------------------------------------------------------------------------------------


def test_the_cost_of_watching_replicas(guarded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is measured: with checks and looks in it, and without."""
    checks: list[int] = []
    before = FeatureGrader.grades

    def grades(self: FeatureGrader, graph: Any) -> Any:
        checks.append(int(graph.cell.shape[0]))
        return before(self, graph)

    monkeypatch.setattr(FeatureGrader, "grades", grades)
    monkeypatch.setattr(cost, "load", lambda path, engine: load(path, "eager"))
    structure = read_structure("CCO")
    assert np.isfinite(cost.in_replicas(guarded, structure, 3, pairs=1, length=0.0))
    assert checks.count(3) >= 3  # one to warm up, and two intervals
    row = {"atoms": 9, "step_ms": 1.0, "check_ms": 2.0, "look_ms": 0.3, "cost_percent": 5.0}
    row |= {"openmm_percent": 7.0, "replicas": 22, "replicas_percent": 6.0}
    told = {"model": {"name": "m", "sha256": "abcdef0123"}, "commit": "c", "machine": "x86"}
    text = cost.page(told | {"rows": {"ethanol": row}})
    assert "| 5.0 | +7.0 | 22 copies: +6.0 |" in text and "m abcdef01. Commit c; x86." in text


# --- the README ----------------------------------------------------------------------------------


def test_the_readme_is_told_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of made-up results: the product's row and no other, both rates side by side, cost."""
    area = {"atom": 0.91, "frame": 0.95, "frame_rms": None}
    part = {"auc": {OURS: area, "another": {**area, "frame": 0.5}}, "bytes": 8123}
    model = {"name": "shipped"}
    calibration = {"settings": {"model": model, "large": 3.0}, "acac": part, "druglike": part}
    row = {"molecule": "a", "kelvin": 300.0, "runs": 20, "broken": 0, "flagged_but_whole": 1}
    row |= {"ps": 5.0, "lead_fs": [], "first_for_its_lengths": 0}
    hot = {**row, "kelvin": 600.0, "broken": 4, "flagged_before_break": 3}
    kept = {"settings": {"model": model, "part": {"ps": 5.0}}, "rows": {"a": row, "b": hot}}
    monkeypatch.setattr(brief, "LADDER", tmp_path / "none.json")
    assert brief.lines(tmp_path) == []
    (tmp_path / "calibration-standard.json").write_text(json.dumps(calibration))
    (tmp_path / "runs-calm.json").write_text(json.dumps(kept))
    for count, false, says in (
        (404, 0, "is met."),
        (404, 1, "is met by this value, and not by its whole interval."),
        (60, 1, "is missed by this value, and not by its whole interval."),
        (24, 18, "is missed."),
    ):
        quiet = {**row, "runs": count, "flagged_but_whole": false}
        asked = {"model": model, "part": {"ps": 5.0, "name": "calm"}}
        (line,) = brief._runs({"settings": asked, "rows": {"a": quiet}})
        assert line.endswith(f"the goal of less than 1 % {says}")
    shares = {"cost_percent": 4.25, "openmm_percent": -1.0, "replicas_percent": 8.0}
    large = {"cost_percent": 2.0, "openmm_percent": 3.0, "replicas_percent": 2.0, "atoms": 99}
    costs = {"rows": {"CCO": {**shares, "atoms": 9}, "large": large}}
    (tmp_path / "cost.json").write_text(json.dumps(costs))
    torn = {**hot, "runs": 80, "broken": 80, "flagged_before_break": 80, "flagged_but_whole": 0}
    torn |= {"lead_fs": [40.0, 60.0], "first_for_its_lengths": 70}
    hotter = {
        **torn,
        "kelvin": 900.0,
        "runs": 4,
        "broken": 2,
        "flagged_before_break": 1,
        "flagged_but_whole": 1,
        "first_for_its_lengths": 1,
    }
    breaks = {**kept, "rows": {"a": torn, "b": {**hotter, "lead_fs": []}}}
    breaks["settings"] = {"model": model, "part": {"ps": 5.0, "name": "breaks"}}
    (tmp_path / "runs-breaks.json").write_text(json.dumps(breaks))
    acac, druglike, sizes, both, calm, warm, cost_line = brief.lines(tmp_path)
    assert (
        "600 to 900 K: flagged before the break 81 of 82, 98.8 % (93.4 to 99.8; 71 for a length)"
        in both
    )
    assert "goal of 95 % is not decided by so few, by one model. Fs before it, median: " in both
    assert "50 at 600 K; least: 40. 2 runs" in both
    assert both.endswith("2 runs stayed whole, 1 of them flagged.")
    assert "8 kB of the shipped model, 8 kB of the fine-tuned one" in sizes
    assert (
        "3 times" in acac
        and "0.950 of frames, 0.910 of atoms; the goal of 0.9 is met by these values" in acac
    )
    assert "shipped, held-out molecules" in druglike and "0.500" not in acac + druglike
    assert (
        "300 K, 0.1 ns or less: false stops: 1 of 20, 5 %" in calm
        and "1 molecules, 5 ps" not in calm
    )
    assert "flagged before the break: 3 of 4, 75 %" in warm
    assert "4.2 % with 9 atoms, 2.0 % with 99 atoms; the goal of less than 10 % is met" in cost_line
    assert "by -1.0 to +8.0 %." in cost_line
    for worse, says in (
        ({"cost_percent": 10.5}, "the goal of less than 10 % is missed"),
        ({"replicas_percent": 10.5}, "% is met by these. Whole"),  # 1 of these may be noise
        ({"replicas_percent": 10.5}, "+10.5 %, too noisy to confirm or to refute that"),
        ({"openmm_percent": -5.0}, "+8.0 %, too noisy to confirm or to refute that"),
        ({"openmm_percent": 17.0, "replicas_percent": 18.0}, "% is missed. Whole"),
    ):
        slow = {"rows": {"CCO": costs["rows"]["CCO"], "large": {**large, **worse}}}
        (tmp_path / "cost.json").write_text(json.dumps(slow))
        assert says in brief.lines(tmp_path)[-1]
    run = {"scenario": "ladder", "guarded": True, "broke": False, "picoseconds": 20.0}
    cold = {**run, "temperature": 300.0, "flag": None}
    hot = {**run, "temperature": 1000.0, "flag": {}}
    torn = {**hot, "broke": True}
    short = {**hot, "temperature": 1200.0, "picoseconds": 10.0}
    odd = {**cold, "scenario": "groups", "picoseconds": 10.0, "flag": {}}
    crude = {**odd, "scenario": "distorted", "picoseconds": 5.0}
    seen = [cold, hot, torn, short, odd, crude]
    (tmp_path / "ladder.json").write_text(json.dumps({"runs": seen}))
    monkeypatch.setattr(brief, "LADDER", tmp_path / "ladder.json")
    shares = "0 of 1 at 300 K (20 ps), 1 of 1 at 1000 K (20 ps), 1 of 1 at 1200 K (10 ps)"
    told = brief.lines(tmp_path)[-1]
    crude_ones = "their starts off by 0.05 and 0.1 Å: 1 of 1 at 300 K (5 ps)"
    assert f"whole and were flagged all the same, unseen molecules: {shares}; {crude_ones}" in told
    assert "groups that training has not: 1 of 1 at 300 K (10 ps). Hot" in told
    monkeypatch.setattr(brief, "RESULTS", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{brief.START}\n{brief.END}\nafter\n")
    brief.main(readme)
    assert readme.read_text().count("\n- ") == 8


def test_the_readme_holds_what_was_measured() -> None:
    text = (brief.ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split(brief.START)[1].split(brief.END)[0]
    assert block.strip().splitlines() == brief.lines(brief.RESULTS) != []
