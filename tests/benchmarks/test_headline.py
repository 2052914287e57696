"""The headline experiment: what is judged, how numbers are made of runs, and a tiny real run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.headline import __main__ as cli
from benchmarks.headline import experiment, make, molecules, plot, statistics, tables
from benchmarks.headline import settings as recipes
from benchmarks.headline.molecules import ACAC, MOLECULES, Problem, available, problem
from benchmarks.headline.settings import (
    DENOISED,
    MODES,
    NOTHING,
    PRETRAINED,
    Case,
    Mode,
    cases,
    read_starts,
    recipe,
)
from mlpot.analysis import stability
from mlpot.analysis.scenarios import Scenario
from mlpot.data.formats import read
from mlpot.data.labellers import labeller
from mlpot.data.record import Record
from mlpot.errors import DataError, InputError
from mlpot.models.checkpoint import build, load_potential, save
from mlpot.train import finetune as finetuning
from mlpot.train.finetune import FinetuneLoop
from mlpot.train.losses import Errors
from mlpot.units import BOLTZMANN
from tests.helpers import ethanol, save_random_model

TINY = {"layers": 2, "channels": 16, "heads": 4, "radial": 8, "cutoff": 4.0}
END = 20.0


# --- frames and what is judged -------------------------------------------------------------------


def test_frames_of_the_clone_are_complete_and_far_from_broken() -> None:
    found, absent = available([name for name in MOLECULES if name != ACAC])
    assert not absent
    told = json.loads((molecules.MADE / "made.json").read_text())
    for one in found:
        assert one.level == "GFN2-xTB" and len(one.learn) == 500
        assert {t: len(f) for t, f in one.tests.items()} == {300.0: 100, 600.0: 100, 1000.0: 100}
        assert len(one.bonds) >= len(one.molecule.numbers) - 1 and not one.mobile
        rms = [told[one.name]["force_rms_eV_A"][f"test {t:g} K"] for t in one.tests]
        assert rms == sorted(rms)  # hotter frames pull harder
        assert molecules.made_file(one.name).stat().st_size < 1_000_000
        learned = {r.positions.tobytes() for r in one.learn}
        assert not any(r.positions.tobytes() in learned for f in one.tests.values() for r in f)


def test_frames_have_the_energies_of_their_temperatures() -> None:
    """Equipartition: n harmonic modes have n kT / 2 of potential energy, with a standard
    deviation of kT (n / 2)^1/2. Molecules are nearly harmonic, and the tests are 2 ps long."""
    for one in available([name for name in MOLECULES if name != ACAC])[0]:
        modes = 3 * len(one.molecule.numbers) - 6
        learn = np.array([r.energy for r in one.learn])
        assert learn.std() == pytest.approx(BOLTZMANN * 300.0 * (modes / 2) ** 0.5, rel=0.1)
        for kelvin in (600.0, 1000.0):
            higher = np.mean([r.energy for r in one.tests[kelvin]]) - learn.mean()
            assert higher == pytest.approx(modes / 2 * BOLTZMANN * (kelvin - 300.0), rel=0.3)


def test_stored_labels_are_those_of_the_program() -> None:
    pytest.importorskip("tblite")
    from mlpot.data.label import calculate

    one = available(["bicyclopentylamine"])[0][0]
    for frame in (one.learn[0], one.tests[1000.0][-1]):
        again = calculate(labeller("gfn2-xtb"), frame)
        assert again["energy"] == pytest.approx(frame.energy, abs=2e-5)
        np.testing.assert_allclose(again["forces"], frame.forces, atol=2e-5)


def test_a_proton_that_moves_in_the_reference_is_not_judged(shared: Path) -> None:
    one = available([ACAC])[0][0]
    assert one.mobile == ["O3-H11"]
    assert len(one.bonds) == 15 - 2 and one.lengths.max() < 1.7
    assert list(one.tests) == [300.0, 600.0] and one.level == "PBE-D3/def2-SVP"


def test_molecules_without_frames_are_named(tmp_path: Path) -> None:
    found, absent = available(shared=tmp_path, made=tmp_path)
    assert not found and list(absent) == list(MOLECULES)
    assert "not part of a clone" in absent[ACAC] and "make" in absent["rufinamide"]


def test_no_molecule_was_trained_on() -> None:
    """By name: those of the suite's held-out list or of groups that training does not have."""
    listed = json.loads((experiment.ROOT / "mlpot/zoo/recipes/held_out.json").read_text())
    for name in make.names():
        one = make._molecule(name)
        assert one.smiles in listed["test"] or one.source == "RDKit conformer"


def test_small_draws_are_part_of_large_ones() -> None:
    frames: list[Any] = list(range(500))
    few, many = (molecules.chosen(frames, n, 3) for n in (50, 200))
    assert many[:50] == few and len(set(many)) == 200
    assert molecules.chosen(frames, 50, 4) != few
    with pytest.raises(DataError, match="501 frames are asked for and there are 500"):
        molecules.chosen(frames, 501, 3)


# --- settings ------------------------------------------------------------------------------------


def test_the_goal_can_be_checked_in_the_standard_mode() -> None:
    mode = MODES["standard"]
    assert statistics.GOAL_FRAMES in mode.draws and statistics.GOAL_KELVIN in mode.temperatures
    assert mode.molecules == tuple(MOLECULES) and list(mode.draws) == [50, 200, 450]
    assert max(mode.draws) <= 500
    order = list(cases(mode, mode.molecules, [NOTHING, PRETRAINED]))
    assert len(order) == len({c.folder for c in order}) == 4 * 3 * 2
    assert [(c.draw, c.frames) for c in order] == sorted((c.draw, c.frames) for c in order)


def starts(folder: Path) -> tuple[str, str]:
    model = save_random_model(folder / "model.safetensors", **TINY)
    info = load_potential(model)[1].model_copy(update={"kind": "denoiser"})
    denoised = folder / "denoised.safetensors"
    save(build(info), info, denoised)
    return str(model), str(denoised)


def test_starts_share_architecture_and_recipe(tmp_path: Path) -> None:
    model, denoised = starts(tmp_path)
    found = read_starts(model, denoised)
    assert list(found.files) == [NOTHING, DENOISED, PRETRAINED] and found.files[NOTHING] is None
    assert list(read_starts(model, "").files) == [NOTHING, PRETRAINED]
    recipes = {
        recipe(Case("x", 50, 1, s), 1e-3, "PBE", MODES["standard"], found).model_copy(
            update={"name": ""}
        )
        for s in found.files
    }
    assert len({r.model_dump_json() for r in recipes}) == 1
    one = recipes.pop()
    assert one.validation == 10 and one.loop.seed == 1 and one.model.channels == 16
    other = save_random_model(tmp_path / "other.safetensors", **{**TINY, "layers": 3})
    for wrong in (model, str(other)):  # no denoiser; another architecture
        with pytest.raises(InputError, match="architecture"):
            read_starts(model, wrong)


# --- numbers -------------------------------------------------------------------------------------


def stored(times: dict[str, list[list[float]]], molecule: str = "m") -> dict[str, Any]:
    """Results of one molecule at 50 frames and 1000 K: start -> draws -> ps; END is whole."""
    models = {}
    for start, draws in times.items():
        for draw, values in enumerate(draws):
            runs = [
                {
                    "temperature": 1000.0,
                    "seed": i,
                    "stable_ps": t,
                    "broke": t < END,
                    "cause": "bond C0-H1" if t < END else "",
                }
                for i, t in enumerate(values)
            ]
            case = Case(molecule, 50, draw, start)
            errors = {"force_mae": 30.0, "force_rmse": 40.0, "energy_mae": 1.0, "energy_rmse": 2.0}
            models[case.key] = {
                **case._asdict(),
                "learning_rate": 2e-3,
                "runs": runs,
                "test_meV": {"300": errors, "1000": {**errors, "force_mae": 90.0 + draw}},
                "core_hours": 0.5,
            }
    described = {
        "smiles": "C",
        "atoms": 5,
        "level": "GFN2-xTB",
        "not_judged": [],
        "tested": {"300": 100, "1000": 100},
    }
    return {
        "settings": {
            "steps": 2000,
            "rates": [5e-4, 2e-3],
            "draws": {"50": 2},
            "temperatures": [1000.0],
            "picoseconds": END,
            "replicas": 4,
            "models": {PRETRAINED: "abcdef0123"},
        },
        "commit": "abc",
        "machine": "x86",
        "absent": {},
        "molecules": {molecule: described},
        "trainings": {"a": {"core_hours": 0.25}},
        "models": models,
    }


@pytest.mark.parametrize(
    ("pretrained", "nothing", "value", "bound", "met"),
    [
        ([END, END, END, 9.0], [0.2, 0.4, 0.4, 0.8], 50.0, ">=", True),
        ([END, END, END, 3.0], [0.2, 0.4, 0.4, 1.0], 50.0, ">=", None),  # 3 to 1 at worst
        ([8.0, 6.0, 7.0, 9.0], [0.5, 0.5, 0.5, 0.5], 15.0, "", True),
        ([8.0, 6.0, 7.0, 9.0], [1.0, 1.5, 1.5, 2.0], 5.0, "", False),
        ([END, END, END, END], [4.0, 4.0, 4.0, 4.0], 5.0, ">=", None),  # too short to tell
        ([END, END, END, END], [END, END, END, END], 1.0, "?", None),
        ([5.0, 5.0, 5.0, 5.0], [END, END, END, 1.0], 0.25, "<=", False),
        ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], 50.0, "", True),  # 0 is not resolved
    ],
)
def test_the_goal_and_runs_that_end_before_they_break(
    pretrained: list[float],
    nothing: list[float],
    value: float,
    bound: str,
    met: bool | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "GOAL_MOLECULES", 1)
    result = stored({PRETRAINED: [pretrained], NOTHING: [nothing]})
    found = statistics.goal(result)
    assert found.estimate is not None
    assert found.estimate.value == pytest.approx(value) and found.estimate.bound == bound
    assert found.met is met
    assert found.estimate.low <= found.estimate.value * (1 + 1e-9)
    assert found.estimate.high >= found.estimate.value * (1 - 1e-9)
    line = "\n".join(tables.verdicts(result))
    words = {True: "is met", False: "is missed", None: "cannot be told|not decided"}[met]
    assert any(word in line for word in words.split("|")), line


def test_one_molecule_or_short_runs_decide_nothing() -> None:
    one = stored({PRETRAINED: [[END] * 4], NOTHING: [[0.1] * 4]})
    assert statistics.goal(one).met is None
    for name in ("n", "o"):
        one["models"] |= stored({PRETRAINED: [[END] * 4], NOTHING: [[0.1] * 4]}, name)["models"]
    assert statistics.goal(one).met is True
    one["settings"]["picoseconds"] = 5.0
    assert statistics.goal(one).met is None


def test_a_start_that_was_not_run_decides_nothing() -> None:
    result = stored({PRETRAINED: [[END] * 4]})
    assert statistics.goal(result).met is None
    assert "not measured" in tables.verdicts(result)[0]
    # the second draw of one start is not compared with the first of another
    ahead = stored({PRETRAINED: [[8.0] * 4, [END] * 4], NOTHING: [[1.0] * 4]})
    estimate = statistics.goal(ahead).estimate
    assert estimate is not None and estimate.value == 8.0 and estimate.bound == ""
    # nor where the first of one has failed
    del ahead["models"][Case("m", 50, 0, NOTHING).key]
    assert statistics.goal(ahead).estimate is None
    ahead["models"] |= {
        key: {**row, "draw": 1}
        for key, row in stored({NOTHING: [[1.0] * 4, [4.0] * 4]})["models"].items()
        if row["draw"] == 1
    }
    estimate = statistics.goal(ahead).estimate
    assert estimate is not None and estimate.value == END / 4


def test_the_upper_end_is_open_where_longer_runs_would_raise_it() -> None:
    few = {"a": {0: np.array([*range(1, 10), *[np.inf] * 3], dtype=float)}}  # 1.4 % of resamples
    one = {"a": {0: np.ones(12)}}
    found = statistics.gain(few, one, END)
    assert found is not None and found.high < END and not found.open
    mine = {"a": {0: np.full(4, 19.0)}, "b": {0: np.full(4, np.inf)}}
    base = {"a": {0: np.full(4, 0.1)}, "b": {0: np.full(4, 5.0)}}
    found = statistics.gain(mine, base, END)  # 190 is of resamples that hold a alone
    assert found is not None and found.high == pytest.approx(190) and found.open


def test_an_interval_that_reaches_below_the_goal_decides_nothing() -> None:
    """12 times on the median of three molecules, of which one breaks at once."""
    result = stored({PRETRAINED: [[12.0] * 4], NOTHING: [[1.0] * 4]})
    for name, ps in (("n", 0.1), ("o", 19.0)):
        result["models"] |= stored({PRETRAINED: [[ps] * 4], NOTHING: [[1.0] * 4]}, name)["models"]
    found = statistics.goal(result)
    assert found.estimate is not None and found.estimate.value == 12 and found.met is None
    assert "not decided" in tables.verdicts(result)[0]


def test_rows_tell_how_many_molecules_they_lack() -> None:
    result = stored({PRETRAINED: [[END] * 4], NOTHING: [[1.0] * 4]})
    other = stored({PRETRAINED: [[0.5] * 4]}, "n")  # which the verdict has nothing to set beside
    result["models"] |= other["models"]
    result["molecules"] |= other["molecules"]
    text = tables.block(result)
    both = "median stable time ≥ 20 ps from the pretrained model, 1 ps from nothing: ≥ 20 times"
    assert f"- 50 frames, 1000 K, 1 molecule: {both}" in text
    assert "| 50 frames, 1 molecule | nothing |" in text and "| 50 frames | pretrained |" in text
    assert "| 50 frames | nothing | 30 [1] | 90 [1] |" in text


def test_medians_count_whole_runs_as_longer_than_their_end() -> None:
    groups = {"a": {0: np.array([1.0, 2.0, np.inf])}, "b": {0: np.array([np.inf, np.inf, 3.0])}}
    alone = statistics.median_time({"a": groups["a"]}, END)
    assert alone is not None and (alone.value, alone.bound) == (2.0, "")
    assert alone.high == END and alone.open  # the upper end is a run that was whole
    both = statistics.median_time(groups, END)
    assert both is not None and both.value == 3.0 and both.bound == ""
    assert statistics.whole(groups) == (3, 6)
    assert statistics.median_time({}, END) is None


def test_intervals_are_those_of_more_than_seeds() -> None:
    """Runs of a model that agree say nothing of another molecule or another draw of frames."""
    rng = np.random.default_rng(0)
    same = {"a": {0: 2.0 + 0.01 * rng.standard_normal(8)}}
    draws = {"a": {**same["a"], 1: 4.0 + 0.01 * rng.standard_normal(8)}}
    both = {**same, "b": {0: 6.0 + 0.01 * rng.standard_normal(8)}}
    widths = []
    for groups in (same, draws, both):
        found = statistics.median_time(groups, END)
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[0] < 0.05 and widths[1] > 1.5 and widths[2] > 3.5


def test_a_median_between_a_time_and_no_end_is_the_time() -> None:
    half = {"a": {0: np.array([0.5, 3.0, np.inf, np.inf])}}
    most = {"a": {0: np.array([0.5, np.inf, np.inf, np.inf])}}
    found, longer = (statistics.median_time(groups, END) for groups in (half, most))
    assert found is not None and (found.value, found.bound) == (3.0, "")
    assert longer is not None and (longer.value, longer.bound) == (END, ">=")
    ratio = statistics.gain(most, half, END)
    assert ratio is not None and (ratio.value, ratio.bound) == (pytest.approx(END / 3), ">=")


def test_errors_weigh_molecules_and_not_models() -> None:
    result = stored({PRETRAINED: [[1.0], [1.0]]})
    other = stored({PRETRAINED: [[1.0]]}, "n")
    result["models"] |= other["models"]
    groups = statistics.errors(result, 50, PRETRAINED, 1000.0, "force_mae")
    found = statistics.mean_error(groups)
    assert found is not None and found.value == pytest.approx((90.5 + 90.0) / 2)
    assert not statistics.errors(result, 50, PRETRAINED, 600.0, "force_mae")


def test_page_block_and_plot_come_from_stored_results(tmp_path: Path) -> None:
    result = stored({NOTHING: [[0.2, 0.4, 0.4, 1.0]], PRETRAINED: [[END, END, END, 3.0]]})
    result["absent"] = {"rufinamide": "run `make`"}
    page = tables.page(result, "standard")
    assert "time ≥ 20 (3 to ≥ 20) ps from the pretrained model, 0.4 (0.2 to" in page
    assert "| 50 frames | pretrained | ≥ 20 (3 to ≥ 20) |" in page
    assert "decided by 20 ps of 3 molecules" in page and "Left out: rufinamide" in page
    assert "| m: forces MAE, meV/Å | from | 300 K | 1000 K |" in page
    assert "| m | 0.2, 0.4, 0.4, 1 | 0 of 4 | 3, ≥ 20, ≥ 20, ≥ 20 | 3 of 4 | ≥ 50 |" in page
    assert "bond 5" in page and "50 frames from nothing 0.002 in 1" in page
    assert "Not finished: 2 models" in page  # a second draw of each
    readme = tmp_path / "README.md"
    readme.write_text("a\nb")
    assert not tables.write_block(readme, "x")
    readme.write_text(f"a\n{tables.START}\nold\n{tables.END}\nb")
    assert tables.write_block(readme, tables.block(result))
    assert readme.read_text().startswith(f"a\n{tables.START}\n1 molecule never")
    assert readme.read_text().endswith(f"|\n{tables.END}\nb")
    plot.plot(result, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_flags_of_the_guard_are_counted_by_what_became_of_the_run() -> None:
    result = stored({NOTHING: [[0.4, 0.4, END, END]], PRETRAINED: [[END] * 4]})
    assert "| guard |" not in tables.page(result, "standard")
    early, late = ({"ps": t, "departure": 0.1, "reason": ""} for t in (0.1, 0.6))
    one = result["models"][Case("m", 50, 0, NOTHING).key]["runs"]
    for run, flag in zip(one, (early, late, early, None), strict=True):
        run |= {"guarded": True, "flag": flag}
    one[2]["temperature"] = one[3]["temperature"] = 300.0
    text = tables.block(result)
    assert "| 50 frames | nothing | 1 of 2 | 0 of 0 | 1 of 2 | 0.3 |" in text
    one[2]["temperature"] = 1000.0
    assert "| 50 frames | nothing | 0 of 1 | 1 of 1 | 1 of 2 | 0.3 |" in tables.block(result)
    assert "| guard |" in text and "| 50 frames | pretrained | 0" not in text


def test_the_better_rate_is_that_of_the_validation_frames() -> None:
    case = Case("m", 50, 0, NOTHING)
    losses = {5e-4: 0.3, 2e-3: None}  # None diverged
    rows = {experiment.training_key(case, r): {"validation_loss": v} for r, v in losses.items()}
    assert experiment.best_rate(rows, case, list(losses)) == 5e-4
    rows[experiment.training_key(case, 2e-3)]["validation_loss"] = 0.1
    assert experiment.best_rate(rows, case, list(losses)) == 2e-3
    for row in rows.values():
        row["validation_loss"] = None
    assert experiment.best_rate(rows, case, list(losses)) is None
    assert experiment.millis(Errors(1e-3, 2e-3, float("nan"), 0.25)) == {
        "energy_mae": 1.0,
        "energy_rmse": 2.0,
        "force_mae": None,
        "force_rmse": 250.0,
    }


# --- a real one ----------------------------------------------------------------------------------


def small_problem() -> Problem:
    """Ethanol held together by springs, at 300 K."""
    atoms = ethanol()
    rng = np.random.default_rng(0)

    def frame(spread: float) -> Record:
        moved = spread * rng.standard_normal(atoms.positions.shape)
        energy = 5.0 * float((moved**2).sum())
        return Record(atoms.numbers, atoms.positions + moved, energy, -10 * moved, level="springs")

    tests = {t: [frame(0.05 * (t / 300) ** 0.5) for _ in range(4)] for t in (300.0, 600.0)}
    made = problem("ethanol", [frame(0.05) for _ in range(20)], tests)
    return replace(made, beside={"far out": [frame(0.2) for _ in range(3)]})


SMALL = Mode(("ethanol",), {10: 1}, 2, (1e-3, 2e-3), "no", (300.0, 1000.0), 0.04, 2, 3)


def one_experiment(tmp_path: Path, mode: Mode = SMALL) -> experiment.Experiment:
    found = read_starts(*starts(tmp_path))
    return experiment.Experiment(
        mode, found, [small_problem()], tmp_path / "small.json", tmp_path / "state"
    )


def test_every_part_runs_once_whatever_interrupts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    finetune = experiment.finetune

    def counted(*args: Any) -> Any:
        trained.append(args[1].name)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return finetune(*args)

    monkeypatch.setattr(experiment, "finetune", counted)
    with pytest.raises(KeyboardInterrupt):
        one_experiment(tmp_path).run()
    begun = json.loads((tmp_path / "small.json").read_text())
    assert len(begun["trainings"]) == 3 and len(begun["models"]) == 1
    one = one_experiment(tmp_path)
    one.run()
    assert len(trained) == 4 + 3 and len(one.result["models"]) == 3
    for model in one.result["models"].values():
        assert [r["temperature"] for r in model["runs"]] == [300.0, 300.0, 1000.0, 1000.0]
        assert all(0 <= r["stable_ps"] <= 0.04 for r in model["runs"])
        assert {t: e["force_mae"] > 0 for t, e in model["test_meV"].items()} == {
            "300": True,
            "600": True,
        }
        assert model["beside_meV"]["far out"]["force_mae"] > 0
        for run in model["runs"]:
            assert run["guarded"]
            assert run["flag"] is None or run["flag"]["departure"] >= 0
            assert "positions" not in (run["flag"] or {})
    before = (tmp_path / "small.json").read_text()
    one_experiment(tmp_path).run()  # nothing is left to do
    assert len(trained) == 7 and (tmp_path / "small.json").read_text() == before
    assert "goal" not in tables.page(one.result, "dev")  # it is about 50 frames
    with pytest.raises(InputError, match="other steps"):
        one_experiment(tmp_path, Mode(**{**SMALL.__dict__, "steps": 3}))


def test_a_training_that_diverges_is_told_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The denoised start's do, with both rates."""
    tried: list[str] = []

    def weird(prediction: Any, batch: Any, weights: Any) -> Any:
        return honest(prediction, batch, weights) * (float("nan") if "denoised" in tried[-1] else 1)

    honest, training = finetuning.energy_force_loss, experiment.finetune

    def noted(records: Any, config: Any, *given: Any) -> Any:
        tried.append(config.name)
        return training(records, config, *given)

    monkeypatch.setattr(finetuning, "energy_force_loss", weird)
    monkeypatch.setattr(experiment, "finetune", noted)
    one = one_experiment(tmp_path)
    one.run()
    assert sorted({m["start"] for m in one.result["models"].values()}) == [NOTHING, PRETRAINED]
    (why,) = one.result["failed"].values()
    assert why == "every training diverged"
    bad = [t for t in one.result["trainings"].values() if t["validation_loss"] is None]
    assert len(bad) == 2 and "lower learning_rate" in bad[0]["diverged"]
    count = len(tried)
    one_experiment(tmp_path).run()
    assert len(tried) == count  # once more would be the same
    page = tables.page(one.result, "dev")
    assert f"Diverged: {next(iter(one.result['failed']))} | 0.001; " in page
    assert "every training diverged" in page and "still to be made" not in page


def test_another_machine_trains_again_what_was_not_simulated(tmp_path: Path) -> None:
    """It has the results and no model files: what is measured stays, the rest is made anew."""
    one = one_experiment(tmp_path)
    one.run()
    first, *_, last = one.result["models"]
    del one.result["models"][last]
    (tmp_path / "small.json").write_text(json.dumps(one.result))
    shutil.rmtree(one.state)
    other = one_experiment(tmp_path)
    other.run()
    assert other.result["models"][first] == one.result["models"][first]
    assert len(other.result["models"]) == len(one.result["models"]) + 1
    molecule, frames, draw, start = last.split(" | ")
    of_it = Case(molecule, int(frames), int(draw), start).folder
    assert [folder.name for folder in other.state.iterdir()] == [of_it]


def test_results_of_another_recipe_or_simulation_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = one_experiment(tmp_path)
    told = one.result["settings"]
    assert (
        told["recipe"]["loop"] | {"optimizer": "muon", "batch_atoms": 100, "ema": 0.99}
        == (told["recipe"]["loop"])
    )
    assert told["recipe"]["floor"] == 0.85 and told["recipe"]["validation"] == {"10": 2}
    assert (
        told["scenario"] | {"timestep": 1.0, "friction": 10.0, "interval": 20.0}
        == (told["scenario"])
    )
    experiment.write_results(one.file, one.result)
    one_experiment(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(recipes, "FinetuneLoop", lambda **given: FinetuneLoop(ema=0.9, **given))
        with pytest.raises(InputError, match="begun with another recipe"):
            one_experiment(tmp_path)
    with monkeypatch.context() as patch:
        other = {**SMALL.scenario.__dict__, "timestep": 0.5}
        patch.setattr(Mode, "scenario", property(lambda mode: Scenario(**other)))
        with pytest.raises(InputError, match="begun with another scenario"):
            one_experiment(tmp_path)


def test_simulations_that_fail_are_told_and_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model's fail: the others are measured, and the next call does what is missing."""
    honest, calls = stability.run_batch, []

    def failing(batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 1:
            raise RuntimeError("no memory")
        return honest(batch)

    monkeypatch.setattr(stability, "run_batch", failing)
    one = one_experiment(tmp_path)
    one.run()
    key = next(iter(one.result["failed"]))
    assert list(one.result["failed"].values()) == [
        "4 of 4 simulations failed: RuntimeError: no memory"
    ]
    assert len(one.result["models"]) == 2 and key not in one.result["models"]
    assert f"Not counted, {key}: 4 of 4 simulations failed" in tables.page(one.result, "dev")
    again = one_experiment(tmp_path)
    again.run()
    assert not again.result["failed"] and len(again.result["models"]) == 3
    assert len(again.result["models"][key]["runs"]) == 4 and len(calls) == 4
    assert "Not counted" not in tables.page(again.result, "dev")


def test_a_run_that_ended_for_another_reason_is_neither_whole_nor_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A calculator that raised says nothing of the potential; an integrator that gave up does."""
    one = small_problem()
    still = np.repeat(one.molecule.positions[None], 3, axis=0)
    monkeypatch.setattr(experiment, "read_trajectory", lambda path: still)
    records = [
        {
            **{"key": ending, "id": ending, "lost": ending != "", "ending": ending, "last": None},
            **{"reason": "no licence" if ending == "calculator" else ""},
            **{"temperatures": [300.0] * 3, "thermostat": [300.0] * 3, "temperature": 300.0},
            **{"interval": 20.0, "steps": 40, "timestep": 1.0, "seed": 0, "engine": "eager"},
            "cpu_seconds": 1.0,
        }
        for ending in ("", "integrator", "calculator")
    ]
    folder = SimpleNamespace(
        records=lambda: records,
        suite=lambda: SimpleNamespace(runs=[r["key"] for r in records]),
        records_file=tmp_path / "none.jsonl",
        trajectory=lambda id: tmp_path / id,
    )
    rows, failed = experiment.verdicts(folder, one)  # type: ignore[arg-type]
    assert failed == "1 of 3 simulations failed: no licence"
    assert [(r["broke"], r["cause"]) for r in rows] == [(False, ""), (True, "integrator")]
    records.pop()
    assert experiment.verdicts(folder, one)[1] == ""  # type: ignore[arg-type]


@pytest.mark.slow
def test_frames_are_made_and_made_again_from_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tblite")
    monkeypatch.setattr(make, "EQUILIBRATION", 0.02)
    short = tuple(
        Scenario(name, ("own",), kelvins, 0.06, seeds=2, timestep=1.0, interval=10.0)
        for name, kelvins in (("learn", (300.0,)), ("test", (300.0, 1000.0)))
    )
    out, said = tmp_path / "out", []
    out.mkdir()
    for _ in range(2):  # the second time there is nothing to compute
        path = make.make("bicyclopentylamine", tmp_path / "state", short, out, report=said.append)
    records = read(path)
    assert len(records) == 2 * 4 + 2 * 2 * 4
    told = json.loads((out / "made.json").read_text())["bicyclopentylamine"]
    assert told["frames"] == {"learn 300 K": 8, "test 300 K": 8, "test 1000 K": 8}
    assert told["largest_bond_departure_A"]["test 1000 K"] < 0.5
    assert "2 runs of 0.06 ps" in told["dynamics"][0]


def test_commands_refuse_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "RESULTS", tmp_path)
    wrong = CliRunner().invoke(cli.app, ["run", "--mode", "slow"])
    assert wrong.exit_code == 2 and "dev, fast, standard" in wrong.output
    empty = CliRunner().invoke(cli.app, ["render", "--mode", "dev"])
    assert empty.exit_code == 2 and "no models yet" in empty.output
