"""The model card is made of measured numbers, and of those of the same weights only."""

import json
import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlpot.data.formats import read
from mlpot.errors import DataError
from mlpot.models.checkpoint import load_potential
from mlpot.train.finetune import FinetuneConfig, FinetuneLoop, finetune
from mlpot.zoo import available_models
from tests.benchmarks.accuracy_scripts import SCRIPTS, scratch  # noqa: F401

model_card, dimers, history = (SCRIPTS[n] for n in ("model_card", "dimers", "history"))
experiment = SCRIPTS["experiment"]
ROOT = Path(__file__).resolve().parents[2]
NAME = "pretrained-visnet"


@pytest.fixture(scope="module")
def records() -> list[Any]:
    return read(ROOT / "examples" / "aspirin_60_frames.xyz")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> Path:
    """The folder of a training run."""
    out = tmp_path_factory.mktemp("energies")
    model = {"layers": 2, "channels": 16, "heads": 4, "radial": 8, "cutoff": 4.0}
    loop = FinetuneLoop(steps=6, validate_every=2, batch_atoms=60, seed=7, threads=1)
    config = FinetuneConfig(
        name=NAME, level="PBE", validation=5, test=5, split_by="frame", model=model, loop=loop
    )
    finetune(records, config, out, progress=False, report=lambda _: None)
    return out


@pytest.fixture
def repository(
    trained: Path,
    records: list[Any],
    scratch: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A repository whose zoo holds the trained model, with its errors measured."""
    (scratch / "mlpot" / "zoo").mkdir(parents=True)
    readme = f"# x\n<!-- errors of {NAME}: generated -->\nold\n<!-- end -->\ny\n"
    (scratch / "README.md").write_text(readme)
    for script in (model_card, SCRIPTS["card_page"]):
        monkeypatch.setattr(script, "ROOT", scratch)
        monkeypatch.setattr(script, "resolve", lambda name: trained / "model.safetensors")
    potential, info = load_potential(trained / "model.safetensors")
    errors = model_card.errors_of(potential, records[:4])
    result = {
        **{"model": NAME, "sha256": info.sha256, "mode": "standard", "parameters": 4321},
        **model_card.described(records),
        "molecules": {"train": 1, "validation": 2, "test": 3},
        **{"held_out": {"moses": errors}, "held_out_all": errors, "held_out_but_dimers": errors},
        "validation": errors,
        "relations": {
            "partners": {"moses": 1},
            "errors_of_new": {"moses": {**errors, "frames": 77}},
            "dimers": {"dimers": 9, "both": 7, "one": 2},
            "bonds": {"H-C": 40, "C-O": 12, "H-O": 2},
        },
        "zero_shot_forces": dict.fromkeys(model_card.ZERO_SHOT, errors),
        "zero_shot_in_training": {
            name: {"alone": 5 * (i == 0), "in dimers": 3 * (i < 2)}
            for i, name in enumerate(model_card.ZERO_SHOT)
        },
        **{"commit": "abc1234", "machine": "abacus"},
    }
    experiment.store(NAME, result)
    return scratch


def render() -> Any:
    return CliRunner().invoke(model_card.app, ["render"])


def test_the_learning_curve_is_that_of_the_run(trained: Path) -> None:
    stage = history.read_stage(trained)
    assert (stage["seed"], stage["steps"]) == (7, 6)
    assert [h["step"] for h in stage["history"]] == [2, 4, 6]
    hours = [h["hours"] for h in stage["history"]]
    assert hours == sorted(hours) and 0 <= hours[-1] <= stage["hours"] < 0.5
    last = load_potential(trained / "model.safetensors")[1].provenance["validation"]
    assert last["force_mae"] in [h["force_mae"] for h in stage["history"]]


def test_stages_follow_each_other_on_one_curve() -> None:
    errors = dict.fromkeys(("force_mae", "force_rmse", "energy_mae", "energy_rmse"), 0.1)
    first = [{"step": s, "hours": s / 100, **errors} for s in (10, 20)]
    second = [{"step": 5, "hours": 0.5, **errors}]
    stages = {"denoising": {"history": [{"step": 99, "loss": 1.0}]}}
    stages |= {history.LABELLED: {"history": first}, f"{history.LABELLED}, 1": {"history": second}}
    told = history.labelled_history(stages)
    assert [(h["step"], round(h["hours"], 6)) for h in told] == [(10, 0.1), (20, 0.2), (25, 0.7)]
    one = {k: v for k, v in stages.items() if k != f"{history.LABELLED}, 1"}
    assert history.gains(one).startswith("One cycle")
    second[0]["force_mae"] = 0.09
    stages[f"{history.LABELLED}, 1"]["hours"] = 0.5
    assert "cycle 2 10.0 % in 0.5 h." in history.gains(stages)
    lines = SCRIPTS["card_page"].commands_of(stages, NAME)
    assert f"--from runs/{NAME}/energies/model.safetensors" in lines["again"]
    assert f"recipes/{NAME}-3-energies.toml --out runs/{NAME}/energies-2" in lines["again"]
    assert lines["last"] == f"runs/{NAME}/energies-2"


def test_gains_on_todays_molecules_are_of_weights_one_after_the_other() -> None:
    def cycles(*errors: float) -> dict[str, Any]:
        rows = {f"c{i}": {"frames": 946, "force_mae": e} for i, e in enumerate(errors)}
        return {"commits": rows}

    after = {"c0": 1, "c1": 3, "c2": 4}
    told = history.gains_today(cycles(40.0, 36.0, 35.1), after)
    assert "946 frames" in told and "cycle 1 40.0 (c0), cycle 3 36.0 (c1)" in told
    assert told.endswith("10.0 % from cycle 1 to 3, 2.5 % from cycle 3 to 4.")
    assert history.gains_today(cycles(40.0), after) == history.gains_today({}, after) == ""


def test_what_dimers_share_with_training() -> None:
    from types import SimpleNamespace

    relations = SCRIPTS["relations"]

    def frames(*groups: str) -> list[Any]:
        return [SimpleNamespace(group=g) for g in groups]

    train = frames("CCO", "OCC", "C.CO", "water", "N.OCC")
    dimers = frames("OC.N", "OC.N", "CCO.Cl", "Br.Cl")
    assert relations.shared_partners(train, dimers) == {"dimers": 3, "both": 1, "one": 1}
    assert relations.frames_of("C(O)C", train) == {"alone": 2, "in dimers": 1}
    assert relations.frames_of("CCC", train) == {"alone": 0, "in dimers": 0}
    assert relations.molecules(train) == 4 and relations.molecules(dimers) == 3
    new = relations.never_met(train, frames("C(O)C", "N", "Cl", "Br.Cl", "Br.CO"))
    assert [r.group for r in new] == ["Cl", "Br.Cl"]


def test_bonds_of_training_are_counted_by_molecule() -> None:
    """Of its SMILES: two atoms side by side are not bonded, however close."""
    from types import SimpleNamespace

    relations = SCRIPTS["relations"]
    train = [SimpleNamespace(group=g) for g in ("CCO", "OCC", "Cl.CO", "water", "CSS", "II")]
    told = {"C-C": 1, "C-O": 2, "C-S": 1, "H-C": 3, "H-Cl": 1, "H-O": 2, "H-S": 1}
    assert relations.bonds(train) == {**told, "I-I": 1, "S-S": 1}


def test_an_unfinished_run_has_no_curve(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not come to its end"):
        history.read_stage(tmp_path)


def test_time_between_a_cut_and_going_on_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace as Event

    logs = {"version_0": [(0, 0), (3600, 100)], "version_1": [(90000, 60), (93600, 160)]}

    class Accumulator:
        def __init__(self, path: str, **_: object):
            self.events = [Event(wall_time=t, step=s) for t, s in logs[Path(path).name]]

        def Reload(self) -> "Accumulator":
            return self

        def Tags(self) -> dict[str, list[str]]:
            return {"scalars": ["x"]}

        def Scalars(self, tag: str) -> list[Event]:
            return self.events

    from tensorboard.backend.event_processing import event_accumulator

    monkeypatch.setattr(event_accumulator, "EventAccumulator", Accumulator)
    for name in logs:
        (tmp_path / "tensorboard" / name).mkdir(parents=True)
    clock = history.hours_by_step(tmp_path)
    assert clock == [(0, 0.0), (60, 0.0), (160, 1.0)]
    assert history.hours_at(clock, 161) == 1.0 and history.hours_at(clock, 500) is None


def test_card_and_readme_hold_what_was_measured(repository: Path, trained: Path) -> None:
    done = CliRunner().invoke(
        model_card.app, ["training", str(trained), "--remark", "A remark"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    dimers.run(str(trained))
    source = dict.fromkeys(
        model_card.ZERO_SHOT, {"frames": 9, "force_mae": 41.4, "force_rmse": 70.7}
    )
    experiment.store(model_card.TEACHER, {"file": "t.jpt", "zero_shot_forces": source})
    done = render()
    assert done.exit_code == 0, done.output
    card = (repository / "mlpot" / "zoo" / f"{NAME}.md").read_text(encoding="utf-8")
    result = experiment.stored(NAME)
    errors = result["held_out"]["moses"]
    assert f"| {errors['force_mae']:.0f} | {errors['force_rmse']:.0f} |" in card
    for told in (
        "| elements | H, C, O |",
        "molecules of 21 to 21 atoms",
        "neutral, closed-shell only",
        "RMSE 71 meV/Å",
        "| seeds | energies and forces 7 |",
        f"SHA-256 {sha256((trained / 'model.safetensors').read_bytes()).hexdigest()} of the file",
        "h of energies and forces (1 threads) |",
        "commit abc1234; abacus",
        "50 frames of 1 molecules; 2 molecules for validation. A remark",
        "C (540 atoms)",
        "## Learning curve",
        "## Two atoms, close and far",
        f"python benchmarks/accuracy/dimers.py run --model runs/{NAME}/energies\n",
        "of 9, both partners of 7 and one of 2 are in training",
        "1 of the 1 of 'moses' are partners in dimers of training",
        "| moses, not in dimers of training | 1 | 77 |",
        "Not for bonds that no molecule of training has: H-H, C-C, O-O.",
        "bonds of H-O (2), in brackets the molecules that have one",
        "how well it tells was not measured",
        "--remark 'A remark'\n",
        "are ethanol (5 frames alone, 3 in dimers) and N-methylacetamide (0 frames alone",
        "; the other is not.",
        "Not measured of this model: dynamics of unseen molecules, fine-tuning on few frames.",
    ):
        assert told in card, told
    assert "{" not in card.split("```")[0]
    assert "## Dynamics" not in card  # not measured
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert "old" not in readme and "| all held out | 1 | 4 |" in readme and readme.endswith("\ny\n")
    assert (repository / "results" / f"{NAME}-training.png").is_file()


def test_how_well_the_guard_tells_is_of_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, file = SCRIPTS["card_page"], tmp_path / "calibration.json"
    monkeypatch.setattr(page, "GUARD", file)
    assert "not measured" in page.guard("a")
    area = {"grade of mlpot": {"frame": 0.9216, "atom": 0.9061}}
    told = {"settings": {"large": 3.0, "model": {"sha256": "a"}}, "druglike": {"auc": area}}
    file.write_text(json.dumps(told))
    assert "above 3 times the usual with a ROC-AUC of 0.922 of frames, 0.906" in page.guard("a")
    assert "not measured" in page.guard("b")


def test_dynamics_in_short_are_of_these_weights_and_count_what_held() -> None:
    in_short = SCRIPTS["card_tables"].in_short
    row = {"broke": "", "lost": False}
    run = {"temperature": 300.0, "picoseconds": 20.0, "rows": [row, {**row, "broke": "C0-H1"}]}
    result = {
        "settings": {"sha256": "a", "share": 0.5},
        "molecules": [{"kind": "peptide"}, {"kind": "dimer"}],
        "runs": {"300 K": run, "long": {**run, "rows": [{**row, "lost": True}]}},
    }
    (told,) = in_short(result, "a")
    assert "2 held-out molecules and pairs (1 peptide, 1 dimer)" in told
    assert "1 of 2 for 10 ps at 300 K; 0 of 1" in told
    assert in_short(result, "b") == in_short({}, "a") == []


def test_results_of_other_weights_stay_out(repository: Path, trained: Path) -> None:
    dimers.run(str(trained))
    stale = experiment.stored("dimers")
    stale["settings"]["sha256"] = "other"
    experiment.store("dimers", stale)
    done = render()
    assert done.exit_code == 0 and "other weights" in done.output
    card = (repository / "mlpot" / "zoo" / f"{NAME}.md").read_text(encoding="utf-8")
    assert "## Two atoms" not in card and "not measured" in card
    for change in ({"sha256": "other"}, {"mode": "dev"}):
        experiment.store(NAME, {**experiment.stored(NAME), **change})
        assert render().exit_code == 1


def test_errors_are_those_of_evaluate_in_millis(trained: Path, records: list[Any]) -> None:
    from mlpot.train.finetune import evaluate

    model = load_potential(trained / "model.safetensors")[0]
    found, straight = model_card.errors_of(model, records[:4]), evaluate(model, records[:4])
    assert found["frames"] == 4
    assert math.isclose(found["force_rmse"], 1e3 * straight.force_rmse)


def test_the_teacher_is_measured_like_the_model(
    repository: Path, monkeypatch: pytest.MonkeyPatch, records: list[Any]
) -> None:
    """With a teacher that is off by one meV/Å everywhere."""
    from ase.calculators.calculator import Calculator, all_changes

    known = {r.positions.tobytes(): r.forces for r in records[:3]}

    class Off(Calculator):
        implemented_properties = ["energy", "forces"]

        def __init__(self, path: Path):
            super().__init__()

        def calculate(
            self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
        ) -> None:
            forces = known[atoms.positions.astype(records[0].positions.dtype).tobytes()]
            self.results = {"energy": 0.0, "forces": forces + 1e-3}

    monkeypatch.setattr(model_card, "AIMNet2", Off)
    monkeypatch.setattr(model_card, "zero_shot_sets", lambda *_: {"a": records[:3]})
    file = repository / "x.jpt"
    file.write_bytes(b"x")
    model_card.teacher(file)
    found = experiment.stored(model_card.TEACHER)["zero_shot_forces"]["a"]
    assert found["force_mae"] == pytest.approx(1.0, rel=1e-3)
    assert found["force_rmse"] == pytest.approx(1.0, rel=1e-3)


def test_command_lines_of_the_card_exist() -> None:
    template = (ROOT / "benchmarks" / "accuracy" / "card_template.md").read_text()
    template = template.replace("{option}", " --name x").replace("{denoised}", "")
    template = template.replace("{cycles}", "")
    known = {c.name or c.callback.__name__ for c in model_card.app.registered_commands}
    lines = [x for x in template.splitlines() if "model_card.py" in x and x.startswith("python")]
    lines += [x.split("{commands}")[1] for x in template.splitlines() if x.startswith("{commands}")]
    assert {line.split()[2] for line in lines} <= known and len(lines) == 5


def test_models_side_by_side_are_those_whose_errors_are_of_the_timed_weights(
    scratch: Path,  # noqa: F811
) -> None:
    side_by_side = SCRIPTS["side_by_side"]
    keys = ("energy_mae", "energy_rmse", "force_mae", "force_rmse")
    errors = dict(zip(keys, (1.0, 2.0, 30.0, 40.0), strict=True))
    reference = next(iter(model_card.ZERO_SHOT))
    for name in ("a", "b", "c"):
        told = {"sha256": name, "parameters": 1234, "held_out_all": errors}
        experiment.store(
            name, {**told, "zero_shot_forces": {reference: errors} if name == "a" else {}}
        )
    ms = {"sha256": "a", "ms": dict.fromkeys(side_by_side.TIMED, 2.04)}
    models = {n: {**ms, "sha256": n} for n in ("a", "b")}
    result = {"threads": 2, "machine": "abacus", "models": models}
    told = side_by_side.tables(result)
    assert "| `a` | 1,234 | 1.0 | 2.0 | 30 | 40 | 40 | 2.0 | 2.0 |" in told
    assert "| `b` | 1,234 | 1.0 | 2.0 | 30 | 40 | - | 2.0 | 2.0 |" in told
    result["models"]["c"] = {**ms, "sha256": "of other weights"}
    assert "`c`" not in side_by_side.tables(result)
    del result["models"]["b"]
    assert side_by_side.tables(result) == ""  # nothing to compare with


def test_the_models_of_the_zoo_are_all_timed() -> None:
    from mlpot.models import checkpoint

    kinds = {name: checkpoint.load(e.path)[1].kind for name, e in available_models().items()}
    timed = list(SCRIPTS["side_by_side"].potentials())
    assert timed[0] == NAME and set(timed) == {n for n, k in kinds.items() if k == "potential"}
