"""The command line: every verb once, and every bad input as one clear line."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from typer.testing import CliRunner, Result

from mlpot import MLPotCalculator
from mlpot.cli import app
from mlpot.zoo import available_models
from tests.helpers import save_random_model

ROOT = Path(__file__).resolve().parent.parent
ASPIRIN = str(ROOT / "examples" / "aspirin_60_frames.xyz")
ALANINE = str(ROOT / "examples" / "alanine-dipeptide.pdb")


def mlpot(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def succeeds(*args: object) -> str:
    result = mlpot(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refuses(*args: object) -> str:
    """The one line that a refusal prints; fails if there is more than that."""
    result = mlpot(*args)
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], result.stderr
    assert "Traceback" not in result.output
    return errors[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "soft.safetensors"
    return save_random_model(path, name="soft", layers=1, scale=0.05, floors={})


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    """A recipe for a tiny network."""
    path = tmp_path / "fast.toml"
    network = "layers = 1\nchannels = 16\nheads = 2\nradial = 8"
    path.write_text(f"[model]\n{network}\n[loop]\nbatch_atoms = 210\nvalidate_every = 2\n")
    return path


# --- help ----------------------------------------------------------------------------------------


VERBS = [command.name or "" for command in app.registered_commands]


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str) -> None:
    assert verb in succeeds("--help")
    assert "Usage" in succeeds(verb, "--help")


def test_the_command_is_installed_and_starts_without_torch() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["mlpot"] == "mlpot.cli:app"
    code = "import sys, mlpot.cli; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "openmm", "ase", "lightning", "matplotlib", "scipy", "pydantic"}
    assert heavy.isdisjoint(out.stdout.split())


def test_version() -> None:
    assert re.fullmatch(r"mlpot \d+\.\d+\.\d+\n", succeeds("--version"))


# --- every verb once ---------------------------------------------------------------------------


def test_models() -> None:
    out = succeeds("models")
    for name, entry in available_models().items():
        assert name in out
        if entry.card_path.is_file():
            assert entry.card_path.read_text().splitlines()[0] in succeeds("models", "--card", name)


def test_models_of_an_empty_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpot.zoo.available_models", dict)
    assert "No models" in succeeds("models")


def test_pretrain_finetune_evaluate_export_md(tmp_path: Path, fast: Path) -> None:
    """What a user types, in this order, each command as the one before suggested it."""
    quiet = ["--quiet", "--steps", 4, "--config", fast]
    out = succeeds("pretrain", ASPIRIN, "--out", tmp_path / "a", *quiet)
    backbone = tmp_path / "a" / "model.safetensors"
    assert f"--from {backbone}" in out

    parts = ["--train", 30, "--validation", 6, "--test", 6]
    target = tmp_path / "b"
    out = succeeds("finetune", ASPIRIN, "--from", backbone, "--out", target, *quiet, *parts)
    weights = target / "model.safetensors"
    assert "training on 30 frames, validating on 6, testing on 6" in out
    assert "meV/atom" in out and "meV/Å" in out
    assert f"mlpot md molecule.pdb --model {weights}" in out
    assert json.loads((target / "config.json").read_text())["recipe"]["loop"]["steps"] == 4

    numbers = tmp_path / "errors.json"
    out = succeeds("evaluate", weights, ASPIRIN, "--json", numbers)
    assert "aspirin" in out and "frames/s" in out
    told = json.loads(numbers.read_text())
    assert told["frames"] == 60 and told["parameters"] > 1000
    assert 0 < told["total"]["force_mae"] <= told["total"]["force_rmse"]

    exported = target / "model.pt"
    assert "self-check" in succeeds("export", weights, exported)
    again = json.loads(
        (succeeds("evaluate", exported, ASPIRIN, "--json", numbers), numbers.read_text())[1]
    )
    assert again["total"]["force_mae"] == pytest.approx(told["total"]["force_mae"], rel=1e-4)

    run = tmp_path / "run"
    start = tmp_path / "aspirin.xyz"
    write(start, read(ASPIRIN, index=0))
    out = succeeds("md", start, "--model", exported, "--ps", 0.005, "--out", run, "--report", 5)
    assert "10 steps" in out and "steps/s" in out and "ns/day" in out
    for name in ("topology.pdb", "trajectory.dcd", "log.csv", "energy.png", "final.pdb"):
        assert str(run / name) in out and (run / name).is_file()


def test_finetune_from_nothing_with_default_parts(tmp_path: Path, fast: Path) -> None:
    options = ["--from", "none", "--out", tmp_path / "a", "--steps", 2, "--quiet", "--config", fast]
    assert "training on 48 frames" in succeeds("finetune", ASPIRIN, *options)


def test_evaluate_by_subset_and_in_all(tmp_path: Path, model: Path) -> None:
    frames = read(ASPIRIN, index=":8")
    for i, frame in enumerate(frames):
        frame.info["subset"] = "few" if i < 2 else "many"
    write(tmp_path / "labelled.xyz", frames, format="extxyz")
    numbers = tmp_path / "errors.json"
    out = succeeds("evaluate", model, tmp_path / "labelled.xyz", "--json", numbers)
    told = json.loads(numbers.read_text())
    few, many = told["subsets"]["few"], told["subsets"]["many"]
    assert (few["frames"], many["frames"]) == (2, 6) and "all" in out
    whole = succeeds("evaluate", model, tmp_path / "labelled.xyz")
    assert "another level of theory" in whole  # reference energies of random size
    mean = (2 * few["energy_mae"] + 6 * many["energy_mae"]) / 8
    assert told["total"]["energy_mae"] == pytest.approx(mean)
    square = (2 * few["force_rmse"] ** 2 + 6 * many["force_rmse"] ** 2) / 8
    assert told["total"]["force_rmse"] ** 2 == pytest.approx(square)


def test_evaluate_takes_valence_energies_that_look_like_a_unit(tmp_path: Path, model: Path) -> None:
    """Their differences between frames are the model's; those of a wrong unit are not."""
    frames, calculator = read(ASPIRIN, index=":8"), MLPotCalculator(model)
    energies = np.array([calculator.get_potential_energy(frame) for frame in frames])
    valence = energies - np.median(energies) * (1 - 1 / 23.06)
    for name, values in (("valence", valence), ("wrong", energies / 23.06)):
        for frame, energy in zip(frames, values, strict=True):
            labels = {"energy": float(energy), "forces": 0 * frame.positions}
            frame.calc = SinglePointCalculator(frame, **labels)
        write(tmp_path / f"{name}.xyz", frames, format="extxyz")
    assert "another level of theory" in succeeds("evaluate", model, tmp_path / "valence.xyz")
    assert "converted from kcal/mol" in refuses("evaluate", model, tmp_path / "wrong.xyz")
    some = [frames[i % 8].copy() for i in range(408)]  # so many that a sample decides
    for i, frame in enumerate(some):
        energy = {"energy": float(energies[i % 8]) / 23.06} if i % 2 else {}
        frame.calc = SinglePointCalculator(frame, forces=0 * frame.positions, **energy)
    write(tmp_path / "some.xyz", some, format="extxyz")
    assert "converted from kcal/mol" in refuses("evaluate", model, tmp_path / "some.xyz")


def test_md_of_smiles_in_ase(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("rdkit")
    options = ["--host", "ase", "--ensemble", "nve", "--format", "xtc", "--steps", 40]
    out = succeeds("md", "CO", "--model", model, "--out", tmp_path / "a", *options)
    assert "CH4O, 6 atoms" in out and "drift" in out
    assert (tmp_path / "a" / "trajectory.xtc").is_file()


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["absent.pdb"], "no such file: absent.pdb"),
        (["C(C"], "neither a file nor a valid SMILES"),
        (["[NH4+]"], "total charge of +1"),
        (["CF"], "does not cover F"),
        ([ALANINE, "--engine", "warp"], "engine must be"),
        ([ALANINE, "--dtype", "float16"], "dtype must be"),
        ([ALANINE, "--platform", "Abacus"], "there are"),
        ([ALANINE, "--host", "ase", "--platform", "abacus"], "cannot be used"),
        ([ALANINE, "--timestep", "0"], "timestep must be positive"),
        ([ALANINE, "--timestep", "0", "--ps", "1"], "must be positive"),
    ],
)
def test_md_refuses(tmp_path: Path, model: Path, args: list[str], says: str) -> None:
    if args[0] != ALANINE and not args[0].endswith(".pdb"):
        pytest.importorskip("rdkit")
    assert says in refuses("md", *args, "--model", model, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_md_refuses_models(tmp_path: Path, model: Path, fast: Path) -> None:
    for verb in (["md", ALANINE, "--model"], ["evaluate"], ["export"]):
        rest = {"evaluate": [ASPIRIN], "export": [tmp_path / "x.pt"]}.get(verb[0], [])
        line = refuses(*verb, "no-such-model", *rest)
        assert "no model is named 'no-such-model'" in line
        assert all(name in line for name in available_models())
        assert "no model file at" in refuses(*verb, tmp_path / "absent.pt", *rest)
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(model.read_bytes()[:-1000])
        assert "truncated" in refuses(*verb, cut, *rest)
    succeeds(
        "pretrain", ASPIRIN, "--out", tmp_path / "a", "--steps", 2, "--quiet", "--config", fast
    )
    denoiser = tmp_path / "a" / "model.safetensors"
    assert "mlpot finetune" in refuses("md", ALANINE, "--model", denoiser)


def test_md_keeps_earlier_results(tmp_path: Path, model: Path) -> None:
    args = ["md", ALANINE, "--model", model, "--out", tmp_path, "--steps", 2, "--no-minimize"]
    succeeds(*args)
    assert "--overwrite" in refuses(*args)
    succeeds(*args, "--overwrite")


def without_forces(frames: list, path: Path) -> None:
    del frames[3].calc.results["forces"]
    write(path, frames, format="extxyz")


def in_kcal(frames: list, path: Path) -> None:
    for frame in frames:
        frame.calc.results["energy"] *= 23.060548
    write(path, frames, format="extxyz")


def with_fluorine(frames: list, path: Path) -> None:
    for frame in frames:
        frame.numbers[-1] = 9
    write(path, frames, format="extxyz")


def unlabelled(frames: list, path: Path) -> None:
    for frame in frames:
        frame.calc = None
    write(path, frames, format="extxyz")


def overlapping(frames: list, path: Path) -> None:
    frames[1].positions[5] = frames[1].positions[4] + 0.01
    write(path, frames, format="extxyz")


def not_finite(frames: list, path: Path) -> None:
    frames[1].positions[5, 0] = float("nan")
    write(path, frames, format="extxyz")


def cut(frames: list, path: Path) -> None:
    write(path, frames, format="extxyz")
    path.write_text(path.read_text()[:-30])


@pytest.mark.parametrize(
    ("damage", "finetune", "evaluate"),
    [
        (without_forces, "frame 3: it has no forces", None),
        (in_kcal, "wrong units suspected", "wrong units suspected"),
        (with_fluorine, "has never seen", "frame 0 (bad.xyz): soft does not cover F"),
        (unlabelled, "no energy", "nothing to compare with"),
        (overlapping, "atoms 4 and 5 are", "atoms 4 and 5 are"),
        (not_finite, "NaN", "NaN"),
        (cut, "truncated", "truncated"),
    ],
)
def test_bad_data(tmp_path: Path, model: Path, damage, finetune: str, evaluate: str | None) -> None:
    path = tmp_path / "bad.xyz"
    damage(read(ASPIRIN, index=":20"), path)
    options = ["--from", model, "--out", tmp_path / "out", "--steps", 1, "--quiet"]
    assert finetune in refuses("finetune", path, *options)
    if evaluate is None:
        succeeds("evaluate", model, path)
    else:
        assert evaluate in refuses("evaluate", model, path)


def test_bad_recipes_and_folders(tmp_path: Path, model: Path, fast: Path) -> None:
    common = [ASPIRIN, "--out", tmp_path / "out", "--quiet", "--from"]
    misspelt = tmp_path / "misspelt.toml"
    misspelt.write_text("learnign_rate = 1")
    assert "learnign_rate" in refuses("finetune", *common, "none", "--config", misspelt)
    assert "no valid" in refuses("pretrain", *common[:-1], "--config", tmp_path / "absent.toml")
    assert "learning_rate" in refuses("finetune", *common, "none", "--learning-rate", -1)
    assert "no model is named" in refuses("finetune", *common, "no-such-model")
    assert "60" in refuses("finetune", *common, model, "--train", 100)
    assert "no such file" in refuses("finetune", "absent.xyz", *common[1:], model)
    assert "suffix" in refuses("finetune", misspelt, *common[1:], model)
    assert "no such file" in refuses("pretrain", "absent.xyz", *common[1:-1])
    assert "must end in .pt" in refuses("export", model, tmp_path / "model.onnx")
    assert "no model is named" in refuses("models", "--card", "no-such-model")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    succeeds("finetune", *common, "none", "--steps", 2, "--config", fast)
    assert "another configuration" in refuses("finetune", *common, "none", "--steps", 3)


def test_columns_of_other_names(tmp_path: Path, model: Path, fast: Path) -> None:
    text = Path(ASPIRIN).read_text()
    text = text.replace("energy=", "REF_energy=").replace(":forces:", ":REF_forces:")
    other = tmp_path / "other.xyz"
    other.write_text(text)
    options = ["--from", "none", "--out", tmp_path / "out", "--quiet", "--config", fast]
    assert "--energy-key" in refuses("finetune", other, *options)
    keys = ["--energy-key", "REF_energy", "--forces-key", "REF_forces"]
    succeeds("finetune", other, *options, "--steps", 2, *keys)


def test_debug_shows_where_an_error_comes_from() -> None:
    result = mlpot("--debug", "md", "absent.pdb")
    assert result.exit_code == 1 and type(result.exception).__name__ == "InputError"
