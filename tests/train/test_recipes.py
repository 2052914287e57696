"""The two recipes on tiny data: they learn, resume exactly, and stop where they should."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.data import atomic_numbers, covalent_radii

from mlpot.data.formats import read
from mlpot.data.lengths import shortest_lengths
from mlpot.data.record import Record
from mlpot.deploy.load import load as deploy
from mlpot.errors import DataError, InputError, MLPotError
from mlpot.models.checkpoint import load
from mlpot.models.potential import Denoiser, Potential
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.finetune import EnergyForceModule, FinetuneConfig, divide, evaluate, finetune
from mlpot.train.guard import add_guard
from mlpot.train.loop import LoopConfig, quiet, read_toml
from mlpot.train.losses import energy_force_loss
from mlpot.train.pretrain import PretrainConfig, pretrain
from tests.helpers import ethanol, save_random_model

ROOT = Path(__file__).resolve().parents[2]
ASPIRIN = ROOT / "examples" / "aspirin_60_frames.xyz"
MODEL = ViSNetConfig(layers=2, channels=16, heads=4, radial=8)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet()


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Distorted ethanol, labelled by a random but fixed potential."""
    teacher = deploy(
        save_random_model(tmp_path_factory.mktemp("teacher") / "t.safetensors", scale=1.0)
    )
    rng = np.random.default_rng(0)
    atoms, made = ethanol(), []
    for _ in range(40):
        positions = atoms.positions + 0.05 * rng.standard_normal(atoms.positions.shape)
        result = teacher(atoms.numbers, positions)
        made.append(
            Record(
                numbers=atoms.numbers.astype(np.int64),
                positions=positions,
                energy=result.energy,
                forces=result.forces,
                group="CCO",
                level="teacher",
            )
        )
    return made


def loop(**changes: Any) -> dict[str, Any]:
    settings = {"steps": 12, "batch_atoms": 36, "warmup": 2, "validate_every": 4}
    return {**settings, "learning_rate": 3e-3, "ema": 0.5, **changes}


def config(**changes: Any) -> FinetuneConfig:
    settings = {"validation": 8, "test": 8, "model": MODEL, "loop": loop()}
    return FinetuneConfig(**{**settings, **changes})


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load(path)[0].state_dict()


def test_finetuning_learns(records: list[Record], tmp_path: Path) -> None:
    start, _ = finetune(records, config(loop=loop(steps=4)), tmp_path / "a", progress=False)
    _, before = finetune(records, config(loop=loop(steps=4)), tmp_path / "b", progress=False)
    longer = config(loop=loop(steps=120, validate_every=40))
    info, after = finetune(records, longer, tmp_path / "c", progress=False)
    assert after.force_mae < 0.6 * before.force_mae
    assert info.level == "teacher" and info.elements == [1, 6, 8]
    assert info.provenance["validation"]["force_mae"] > 0
    model, _ = load(tmp_path / "c" / "model.safetensors")
    assert isinstance(model, Potential)
    split = json.loads((tmp_path / "c" / "split.json").read_text())
    test = [records[i] for i in split["test"]]
    assert len(test) == 8
    assert evaluate(model, test).force_mae == pytest.approx(after.force_mae, rel=1e-6)


def script_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[float]:
    """Let validations report these losses in turn; returns the list of those reported."""
    honest, seen = EnergyForceModule.finish, []

    def scripted(self: EnergyForceModule) -> dict[str, float]:
        seen.append(losses[len(seen)])
        return {**honest(self), "loss": seen[-1]}

    monkeypatch.setattr(EnergyForceModule, "finish", scripted)
    return seen


@pytest.mark.parametrize(("killed_at", "optimizer"), [(6, "muon"), (8, "adamw")])
@pytest.mark.parametrize("losses", [[5.0, 4.0, 3.0, 2.0, 1.0], [3.0, 1.0, 2.0, 2.5, 2.0]])
def test_resuming_is_exact(
    records: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: int,
    optimizer: str,
    losses: list[float],
) -> None:
    """Killed in the middle of an epoch, right after a validation or between two, then started
    again; also where the best model lies before the kill."""
    settings = config(loop=loop(steps=15, validate_every=3, optimizer=optimizer))
    script_losses(monkeypatch, losses)
    finetune(records, settings, tmp_path / "whole", progress=False)

    honest = EnergyForceModule.training_step
    steps: list[int] = []
    deaths = [killed_at]

    def step(self: EnergyForceModule, batch: Any, index: int) -> torch.Tensor:
        if deaths and self.global_step == deaths[0]:
            deaths.pop()
            raise RuntimeError("the machine went away")
        steps.append(self.global_step)
        return honest(self, batch, index)

    monkeypatch.undo()
    monkeypatch.setattr(EnergyForceModule, "training_step", step)
    seen = script_losses(monkeypatch, losses)
    with pytest.raises(RuntimeError, match="went away"):
        finetune(records, settings, tmp_path / "cut", progress=False)
    before = len(steps)
    finetune(records, settings, tmp_path / "cut", progress=False)
    assert steps[before:] == list(range(6, 15))  # from the last checkpoint, not from the start
    assert seen == losses  # no validation twice
    for name in ("whole", "cut"):
        history = json.loads((tmp_path / name / "history.json").read_text())
        assert [h["loss"] for h in history] == losses
    whole, cut = (weights(tmp_path / f / "model.safetensors") for f in ("whole", "cut"))
    for name in whole:
        assert torch.equal(whole[name], cut[name]), name


def run_on_aspirin(out: Path, killed_at: int | None = None) -> None:
    """A training in one thread; its process is killed before a step, if one is given."""
    honest = EnergyForceModule.training_step

    def step(self: EnergyForceModule, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, batch, index)

    settings = config(
        test=4, split_by="frame", loop=loop(batch_atoms=84, validate_every=3, threads=1)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnergyForceModule, "training_step", step)
        finetune(read(ASPIRIN)[:24], settings, out, progress=False)


def test_a_killed_process_goes_on_exactly(tmp_path: Path) -> None:
    run_on_aspirin(tmp_path / "whole")
    words = "from tests.train.test_recipes import Path, run_on_aspirin; "
    words += f"run_on_aspirin(Path({str(tmp_path)!r}) / 'cut', 8)"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {file.name for file in (tmp_path / "cut").iterdir()}
    assert "last.ckpt" in left and "history.json" not in left
    run_on_aspirin(tmp_path / "cut")
    whole, cut = (weights(tmp_path / f / "model.safetensors") for f in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_interrupted_by_hand(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: EnergyForceModule, batch: Any, index: int) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(EnergyForceModule, "training_step", interrupt)
    with pytest.raises(MLPotError, match="interrupted at step 0 of 12; give the same command"):
        finetune(records, config(), tmp_path, progress=False)


def test_resuming_refuses_other_data(records: list[Record], tmp_path: Path) -> None:
    finetune(records, config(), tmp_path, progress=False)
    with pytest.raises(DataError, match=r"(?i)split"):
        finetune(records[:30], config(), tmp_path, progress=False)
    teacher = save_random_model(tmp_path / "teacher.safetensors")
    with pytest.raises(InputError, match="starting model"):
        finetune(records, config(), tmp_path, teacher, progress=False)


def test_a_start_with_other_statistics_of_the_guard_is_the_same_start(
    records: list[Record], tmp_path: Path
) -> None:
    """What a training goes on with are weights."""
    start, out = save_random_model(tmp_path / "start.safetensors"), tmp_path / "run"
    first = finetune(records, config(), out, start, progress=False)
    add_guard(start, records)
    assert finetune(records, config(), out, start, progress=False) == first


def test_a_finished_run_is_not_trained_again(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finetune(records, config(), tmp_path, progress=False)

    def must_not_train(self: EnergyForceModule, batch: Any, index: int) -> torch.Tensor:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(EnergyForceModule, "training_step", must_not_train)
    assert finetune(records, config(), tmp_path, progress=False) == first
    with pytest.raises(InputError, match="another configuration"):
        finetune(records, config(energy_weight=7.0), tmp_path, progress=False)


def test_early_stopping(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = script_losses(monkeypatch, [3.0, 2.0, 2.5, 2.5, 1.0, 1.0])
    settings = config(loop=loop(steps=24, validate_every=4, patience=2))
    info, _ = finetune(records, settings, tmp_path, progress=False)
    assert seen == [3.0, 2.0, 2.5, 2.5]  # two without gain, and the better 1.0 is never reached
    assert info.provenance["validation"]["loss"] == 2.0  # what is kept is the best
    finetune(records, settings, tmp_path, progress=False)
    assert len(seen) == 4  # a run that has stopped stays stopped


def test_denoising_learns_and_seeds_finetuning(records: list[Record], tmp_path: Path) -> None:
    settings = PretrainConfig(
        noise=0.1,
        validation=8,
        model=MODEL,
        loop=loop(steps=150, validate_every=50, ema=0.9, learning_rate=1e-2),
    )
    info = pretrain(records, settings, tmp_path / "denoised", progress=False)
    assert info.kind == "denoiser"
    assert info.provenance["validation"]["loss"] < 0.9  # 1 is what predicting no noise gives
    start = tmp_path / "denoised" / "model.safetensors"
    denoised, _ = load(start)
    assert isinstance(denoised, Denoiser)
    frozen = loop(steps=1, validate_every=1, learning_rate=1e-12, warmup=0)
    finetune(records, config(loop=frozen), tmp_path / "tuned", start, progress=False)
    tuned, _ = load(tmp_path / "tuned" / "model.safetensors")
    for name, value in denoised.backbone.state_dict().items():
        torch.testing.assert_close(tuned.backbone.state_dict()[name], value)


def test_denoising_twists_as_the_recipe_says(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def twisted(numbers: Any, positions: Any, degrees: float, rng: Any) -> Any:
        seen.append(degrees)
        return positions

    monkeypatch.setattr("mlpot.data.loader.twist", twisted)
    for torsions in (0.0, 25.0):
        short = loop(steps=1, validate_every=1)
        settings = PretrainConfig(torsions=torsions, validation=8, model=MODEL, loop=short)
        pretrain(records, settings, tmp_path / f"{torsions}", progress=False)
    assert set(seen) == {25.0}


def test_starting_from_a_potential_keeps_its_forces(records: list[Record], tmp_path: Path) -> None:
    """References are refitted so that another level of theory costs nothing at step 0. Lengths that
    are shorter than it knew would change it."""
    known = {"H-C": 0.8, "H-O": 0.8, "C-C": 1.1, "C-O": 1.1}
    teacher = save_random_model(tmp_path / "teacher.safetensors", scale=1.0, floors=known)
    predict = deploy(teacher)
    labels = [predict(r.numbers, r.positions) for r in records]
    shifted = [
        Record(r.numbers, r.positions, label.energy + 60.0, label.forces, group="CCO", level="b")
        for r, label in zip(records, labels, strict=True)
    ]
    frozen = loop(steps=1, validate_every=1, learning_rate=1e-12, warmup=0)
    _, errors = finetune(shifted, config(loop=frozen), tmp_path / "out", teacher, progress=False)
    assert errors.force_mae < 1e-4
    assert errors.energy_mae < 1e-4
    source, tuned = load(teacher)[0], load(tmp_path / "out" / "model.safetensors")[0]
    moved = tuned.reference_energies - source.reference_energies
    assert float(moved[[1, 6, 8]].abs().max()) < 20  # 60 eV over 9 atoms: no element takes it all
    counts = torch.bincount(torch.as_tensor(records[0].numbers), minlength=len(moved))
    assert float((counts * moved).sum()) == pytest.approx(60.0, abs=1e-3)


BRIEF: dict[str, Any] = {"steps": 1, "validate_every": 1, "warmup": 0}


def floors_of(
    records: list[Record], out: Path, start: Path | None = None, **changes: Any
) -> dict[str, float]:
    """Of what a single step leaves."""
    settings = config(loop=loop(**BRIEF), **changes)
    return finetune(records, settings, out, start, progress=False)[0].floors


def test_floors_are_the_shortest_lengths_in_training(records: list[Record], tmp_path: Path) -> None:
    """With a margin where frames are few. Of a start, what is shorter still holds."""
    split = divide(records, config())
    found = {"O-O": 5.0, **shortest_lengths([records[i] for i in split.train], 5.0)}
    assert len(found) == 6  # a pair out of reach counts as seen at the cutoff
    for share in (0.85, 1.0):
        floors = floors_of(records, tmp_path / str(share), floor=share)
        assert floors == pytest.approx({k: share * v for k, v in found.items()}, abs=1e-4)
    narrow, wide = (load(tmp_path / s / "model.safetensors")[1].floors for s in ("1.0", "0.85"))
    for first, share in (("1.0", 0.85), ("0.85", 1.0)):
        start = tmp_path / first / "model.safetensors"
        assert floors_of(records, tmp_path / f"{share} on {first}", start, floor=share) == wide
    assert narrow != wide


def test_no_floors_where_none_are_wanted_or_nothing_else_would_repel(
    records: list[Record], tmp_path: Path
) -> None:
    assert floors_of(records, tmp_path / "a", floor=0) == {}
    assert load(tmp_path / "a" / "model.safetensors")[0].floor is None
    assert floors_of(records, tmp_path / "b", prior="none") == {}


def test_a_start_without_floors_keeps_its_say_about_other_molecules(
    records: list[Record], tmp_path: Path
) -> None:
    """Frames of ethanol have no O-O, and H-H no nearer than in a methyl group: no word about H2O2
    or H2. Complete frames (a floor of 1) may say so."""
    start = save_random_model(tmp_path / "start.safetensors", floors={})
    floors = floors_of(records, tmp_path / "few", start)
    for pair, length in floors.items():
        radii = [covalent_radii[atomic_numbers[symbol]] for symbol in pair.split("-")]
        assert length <= 0.8 * sum(radii) + 1e-4
    assert floors_of(records, tmp_path / "complete", start, floor=1.0)["O-O"] == 5.0


def forget(run: Path, setting: str) -> None:
    """As if a run had been begun before there was that setting."""
    path = run / "config.json"
    told = json.loads(path.read_text())
    del told["recipe"][setting]
    path.write_text(json.dumps(told))


def test_runs_of_before_there_were_floors_go_on(records: list[Record], tmp_path: Path) -> None:
    settings = config(loop=loop(**BRIEF), floor=0.0)
    before = finetune(records, settings, tmp_path, progress=False)
    forget(tmp_path, "floor")
    assert finetune(records, settings, tmp_path, progress=False) == before
    with pytest.raises(InputError, match=r"config\.json: floor\)"):
        finetune(records, config(loop=loop(**BRIEF)), tmp_path, progress=False)


def test_runs_of_before_there_were_torsions_go_on(records: list[Record], tmp_path: Path) -> None:
    settings = PretrainConfig(validation=8, model=MODEL, loop=loop(steps=1, validate_every=1))
    before = pretrain(records, settings, tmp_path, progress=False)
    forget(tmp_path, "torsions")
    assert pretrain(records, settings, tmp_path, progress=False) == before
    with pytest.raises(InputError, match=r"config\.json: torsions\)"):
        other = settings.model_copy(update={"torsions": 20.0})
        pretrain(records, other, tmp_path, progress=False)


def test_valence_energies_that_look_like_a_unit_are_learned(
    records: list[Record], tmp_path: Path
) -> None:
    """GFN2-xTB's are a small part of all-electron energies, by chance one that a unit explains."""
    teacher = save_random_model(tmp_path / "teacher.safetensors", scale=1.0)
    whole = np.median([r.energy or 0.0 for r in records])
    valence = [replace(r, energy=(r.energy or 0.0) - whole * (1 - 1 / 23.06)) for r in records]
    settings = config(loop=loop(steps=2, validate_every=2))
    _, errors = finetune(valence, settings, tmp_path / "valence", teacher, progress=False)
    assert np.isfinite(errors.energy_mae)
    energies = [(r.energy or 0.0) / 23.06 for r in records]  # and these are wrong
    wrong = [replace(r, energy=e) for r, e in zip(records, energies, strict=True)]
    with pytest.raises(DataError, match="wrong units"):
        finetune(wrong, settings, tmp_path / "wrong", teacher, progress=False)


def test_nan_predictions_are_not_hidden(records: list[Record], tmp_path: Path) -> None:
    model, _ = load(save_random_model(tmp_path / "m.safetensors"))
    assert isinstance(model, Potential)
    assert evaluate(model, records).force_mae > 0
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    assert not evaluate(model, records).force_mae < 1e9


def test_short_runs_validate_and_toml_keeps_the_defaults(tmp_path: Path) -> None:
    assert LoopConfig(steps=7).validate_every == 7
    assert LoopConfig(steps=700, validate_every=500).steps == 1000
    path = tmp_path / "recipe.toml"
    path.write_text("[loop]\nsteps = 1200\n")
    recipe = read_toml(path, FinetuneConfig).loop
    assert (recipe.batch_atoms, recipe.learning_rate, recipe.ema) == (100, 1e-3, 0.99)
    assert recipe.optimizer == "muon" and LoopConfig().optimizer == "adamw"


def test_bad_data_is_refused(records: list[Record], tmp_path: Path) -> None:
    def changed(**fields: Any) -> list[Record]:
        r = records[3]
        values = {f: getattr(r, f) for f in ("numbers", "positions", "energy", "forces", "group")}
        return [*records[:3], Record(**{**values, **fields}), *records[4:]]

    teacher = save_random_model(tmp_path / "teacher.safetensors")
    for bad, message in (
        (changed(forces=None), "force"),
        (changed(energy=None), "energy"),
        (changed(positions=records[3].positions * np.nan), "NaN|finite"),
        (changed(charge=1), "charge"),
    ):
        with pytest.raises(DataError, match=message):
            finetune(bad, config(), tmp_path / "bad", teacher, progress=False)
    kcal = [
        Record(r.numbers, r.positions, (r.energy or 0) * 23.06, r.forces, group="CCO")
        for r in records
    ]
    with pytest.raises(DataError, match=r"(?s)wrong units.*kcal/mol"):
        finetune(kcal, config(), tmp_path / "units", teacher, progress=False)
    numbers = records[0].numbers.copy()
    numbers[0] = 16
    sulphur = [
        Record(numbers, r.positions, r.energy, r.forces, group="CCS", level="x") for r in records
    ]
    with pytest.raises(DataError, match="the data hold S, which random has never seen"):
        finetune(sulphur, config(), tmp_path / "element", teacher, progress=False)
    one = [*records[:-1], sulphur[0]]
    one[-1] = Record(numbers, records[0].positions, -1e4, records[0].forces, group="CCO")
    for seed in range(20):  # whichever part that frame falls into, it is never half covered
        with pytest.raises(DataError, match="S"):
            finetune(one, config(loop=loop(seed=seed)), tmp_path / f"{seed}", teacher)
    assert not list(tmp_path.glob("**/model.safetensors"))


def test_recipes_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('name = "mine"\n[loop]\nsteps = 7\n')
    assert read_toml(path, FinetuneConfig).loop.steps == 7
    path.write_text("stepz = 7\n")
    with pytest.raises(InputError, match="stepz"):
        read_toml(path, FinetuneConfig)
    with pytest.raises(InputError, match="No such file"):
        read_toml(tmp_path / "absent.toml", PretrainConfig)
    for recipe in (Path(__file__).parents[2] / "mlpot" / "zoo" / "recipes").glob("*.toml"):
        read_toml(recipe, PretrainConfig if "denoise" in recipe.name else FinetuneConfig)


def test_the_loss_by_hand(records: list[Record]) -> None:
    from mlpot.data.loader import GraphLoader
    from mlpot.models.potential import Prediction

    target = next(iter(GraphLoader(records[:1], 5.0, shuffle=False)))
    shifted = torch.zeros(9, 3)
    shifted[:, 0] = 0.3
    prediction = Prediction(
        target.energy + 0.9, target.forces + shifted, torch.zeros(1, 3, 3), target.energy
    )
    loss = energy_force_loss(prediction, target, torch.tensor([2.0, 1.0 / 9]))
    assert float(loss) == pytest.approx(2.0 * 0.1 + 0.3, rel=1e-4)
