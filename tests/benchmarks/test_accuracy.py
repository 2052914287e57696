"""The experiments of benchmarks/accuracy, tiny but real, and their pages from stored results."""

import json
import re
import shlex
from collections import defaultdict
from pathlib import Path
from shutil import rmtree
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.data import chemical_symbols
from typer.testing import CliRunner

from mlpot.calculator import MLPotCalculator
from mlpot.data.formats import read
from mlpot.data.record import Record
from mlpot.deploy.engines import DeployedModel
from mlpot.deploy.load import load
from mlpot.errors import InputError
from mlpot.models.checkpoint import build, load_potential, save
from mlpot.models.checkpoint import load as load_model
from mlpot.train.finetune import finetune
from tests.benchmarks.accuracy_scripts import SCRIPTS, scratch  # noqa: F401
from tests.helpers import ethanol, methanol_with_water, save_random_model

ablation, rmd17, dimers = (SCRIPTS[name] for name in ("ablation", "rmd17", "dimers"))
starts = SCRIPTS["ablation_starts"]
dynamics, trajectories = SCRIPTS["dynamics"], SCRIPTS["trajectories"]
experiment = SCRIPTS["experiment"]

TINY = {"layers": 2, "channels": 16, "heads": 4, "radial": 8, "cutoff": 4.0}


def pages(script: Any, scratch: Path, *options: str, name: str = "") -> str:  # noqa: F811
    """What `render` writes."""
    done = CliRunner().invoke(script.app, ["render", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    name = name or script.NAME
    assert (scratch / "results" / f"{name}.png").stat().st_size > 1000
    return (scratch / "results" / f"{name}.md").read_text(encoding="utf-8")


# --- what they share -------------------------------------------------------------------------


def test_results_are_gone_on_with_only_under_the_same_settings(scratch: Path) -> None:  # noqa: F811
    result = experiment.begun("x", {"minutes": 1.0, "steps": [1, 2]})
    experiment.store("x", {**result, "rows": {"a": [0.1, -2e-5]}})
    assert experiment.begun("x", {"minutes": 1.0, "steps": [1, 2]})["rows"] == {"a": [0.1, -2e-5]}
    with pytest.raises(InputError, match="another minutes .1.0."):
        experiment.begun("x", {"minutes": 2.0, "steps": [1, 2]})


def test_results_say_where_they_went_on(
    scratch: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"minutes": 1.0}
    commits = iter(["aaa", "aaa", "bbb+", "bbb+", "bbb+"])
    monkeypatch.setattr(experiment, "commit", lambda: next(commits))
    monkeypatch.setattr(experiment, "machine", lambda: "abacus")
    for _ in range(4):
        result = experiment.begun("x", settings)
        experiment.store("x", result)
    assert result["went_on"] == [{"commit": "bbb+", "machine": "abacus"}]
    assert experiment.made_at(result) == "Commit aaa; abacus. Gone on with at bbb+ (abacus)."


def test_seconds_per_step_leaves_out_what_every_run_costs(
    scratch: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(np.cumsum([0, 60 + 1, 0, 5 + 1, 0, 5 + 11]).tolist())
    monkeypatch.setattr(experiment.time, "perf_counter", lambda: next(clock))
    ran = []
    found = experiment.seconds_per_step(lambda steps, folder: ran.append(steps), "timing")
    assert found == pytest.approx(0.1) and ran == [10, 10, 110]


def test_spread_and_table() -> None:
    assert experiment.with_spread([1.0, 2.0]) == "1.5 ± 0.5"
    assert experiment.with_spread([1.25], 2) == "1.25"
    assert experiment.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def letters(smiles: str) -> str:
    """Equal for all spellings of a molecule."""
    return "".join(sorted(re.sub("[^A-Z]", "", smiles.upper().replace("H", ""))))


def spelling(smiles: str) -> str:
    """The same for all spellings and orders of its parts."""
    chem = pytest.importorskip("rdkit.Chem")
    parts = [chem.MolFromSmiles(part) for part in smiles.split(".")]
    if None in parts:  # ALA and others: names of residues
        return smiles
    return ".".join(sorted(chem.MolToSmiles(chem.RemoveHs(part)) for part in parts))


def test_no_held_out_molecule_is_trained_on_under_another_spelling(shared: Path) -> None:
    with h5py.File(experiment.DATA / experiment.DRUGLIKE) as file:
        groups = set(file["smiles"].asstr()[:])
    for name in experiment.TRAINED_ON[1:]:
        groups |= {record.group for record in read(experiment.DATA / name)}
    listed = json.loads(experiment.HELD_OUT.read_text())
    alike = defaultdict(list)
    for group in groups - {g for part in listed.values() for g in part}:
        alike[letters(group)].append(group)
    twins = {
        held: [g for g in alike[letters(held)] if spelling(g) == spelling(held)]
        for part in listed.values()
        for held in part
    }
    # and those that are left out are left out for that reason
    assert {held for held, same in twins.items() if same} == set(listed["left_out"])
    assert set(listed["left_out"]) > experiment.SPELT_OTHERWISE


# --- ablation --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """The first molecules and all that are held out, in a file of their own: reading the whole
    set takes long."""
    listed = json.loads(experiment.HELD_OUT.read_text())
    held = {*listed["validation"], *listed["test"]}
    small = tmp_path_factory.mktemp("data") / "frames.h5"
    with h5py.File(experiment.DATA / experiment.DRUGLIKE) as file, h5py.File(small, "w") as out:
        offset, molecule = file["offset"][:], file["molecule"][:]
        smiles = file["smiles"].asstr()[:]
        wanted = np.array([i < 300 or s in held for i, s in enumerate(smiles)])[molecule]
        sizes = np.diff(offset)
        atoms = np.repeat(wanted, sizes)
        out["offset"] = np.concatenate([[0], np.cumsum(sizes[wanted])])
        out["molecule"], out["energy"] = molecule[wanted], file["energy"][:][wanted]
        for name in ("atomic_numbers", "positions", "forces"):
            out[name] = file[name][:][atoms]
        for name in ("smiles", "subset"):
            file.copy(name, out)
    return read(small)


@pytest.fixture(scope="module")
def druglike(frames: list[Record]) -> Any:
    """A few frames of each part."""
    whole = experiment.divide(frames, ablation.ELEMENTS)
    return experiment.Parts(whole.train[::30], whole.validation[::150], whole.test[::300])


def ablation_settings() -> dict[str, Any]:
    return {
        "model": TINY,
        "minutes": 0.0025,
        "denoise_minutes": 0.0025,
        "held": 2,
        "batch_atoms": 40,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "denoise_rate": 1e-3,
        "threads": 1,
        "compile": "no",
    }


def test_the_verdict_counts_the_time_of_denoising() -> None:
    """Where labels in the same minutes gain more, it says so; of paired seeds only."""
    tables = SCRIPTS["ablation_tables"]

    def rows(start: str, frames: int, *errors: float) -> dict[Any, Any]:
        told = [{"seed": s, "test_meV": {"force_mae": e}} for s, e in enumerate(errors)]
        return {(start, frames): told}

    groups = {
        **rows(tables.NOTHING, 100, 120.0, 120.0), **rows("denoised 0.1 Å", 100, 80.0, 60.0, 1.0),
        **rows(tables.LONGER, 100, 100.0),
        **rows(tables.NOTHING, 900, 90.0), **rows("denoised 0.1 Å", 900, 60.0),
        **rows(tables.LONGER, 900, 45.0),
        **rows(tables.NOTHING, 5000, 90.0), **rows("denoised 0.1 Å", 5000, 60.0),
    }  # fmt: skip
    assert tables.gains(groups, "denoised 0.1 Å", 100) == [1.5, 2.0]
    few, many, _ = tables.verdict(groups).splitlines()  # of 5,000 frames one start is missing
    assert few.startswith("- 100 frames") and "1.75 times" in few
    assert few.endswith("denoising pays for its own time.")
    assert "2.00 times" in many and many.endswith("denoising does not pay for its own time.")
    groups |= rows("denoised 0.2 Å", 900, 50.0)
    assert "Not tried: rotations about bonds, an energy" in tables.verdict(groups)
    ways = [f"denoised 0.1 Å {how}" for how in ("+ torsions", "by energy", "briefly")]
    assert tables.untried(ways[:2]) == " Not tried: a quarter of the denoising steps."
    assert tables.untried(ways) == ""
    assert tables.BESIDE_THE_HEAD not in tables.verdict(groups)
    by_energy = rows("denoised 0.1 Å by energy", 900, 55.0)
    assert tables.BESIDE_THE_HEAD in tables.verdict(groups | by_energy)
    groups |= rows("denoised 0.1 Å briefly", 900, 70.0) | rows(tables.BRIEFLY_LONGER, 900, 80.0)
    briefly = [x for x in tables.verdict(groups).splitlines() if "Å briefly" in x]
    assert len(briefly) == 1 and briefly[0].endswith("denoising pays for its own time.")
    names = [f"denoised {how}" for how in ("0.1 Å", "0.2 Å", "0.1 Å briefly")]
    best = tables.best_noises(groups, names, [100, 900])
    assert len(best) == 1 and "denoised 0.2 Å 50.0, denoised 0.1 Å 60.0" in best[0]


def test_the_command_on_the_card_does_the_same_ablation(scratch: Path) -> None:  # noqa: F811
    """Options that differ from the stored settings would be refused."""
    committed = Path(ablation.__file__).parent / "results" / "ablation.json"
    result = json.loads(committed.read_text(encoding="utf-8"))
    experiment.store("ablation", result)
    commands = ablation.options(result)
    for words in commands:
        done = CliRunner().invoke(ablation.app, [*shlex.split(words), "--no-published", "--plan"])
        assert done.exit_code == 0 and "0 runs to do" in done.output, done.exception

    result["runs"] = {}  # and from nothing they do all of them again
    experiment.store("ablation", result)
    planned = set()
    for words in commands:
        done = CliRunner().invoke(ablation.app, [*shlex.split(words), "--no-published", "--plan"])
        planned |= {line for line in done.output.splitlines() if " | " in line}
    own = {k for k in json.loads(committed.read_text())["runs"] if not k.startswith("geom2vec")}
    assert planned == own


def test_steps_that_are_given_are_not_timed(scratch: Path) -> None:  # noqa: F811
    """Another machine does the steps of the card, however long it takes for one."""
    one = ablation.Ablation(experiment.Parts([], [], []), ablation_settings())
    one.keep_steps(["own=0.01"], 77)
    assert one.steps(ablation.Case(ablation.NOTHING, 1000, 0)) == 15  # 0.0025 min
    assert one.denoising_steps(lambda *_: pytest.fail("it was timed"), []) == 77


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("0.1", "denoised 0.1 Å"),
        ("0.10 + torsions", "denoised 0.1 Å + torsions"),
        ("0.1 by energy", "denoised 0.1 Å by energy"),
        ("0.2 briefly", "denoised 0.2 Å briefly"),
    ],
)
def test_a_start_is_named_after_its_noise(text: str, start: str) -> None:
    noise = starts.Noise.parse(text)
    assert noise.start == start
    assert starts.of_start(start) == noise == starts.Noise.parse(noise.key)
    assert starts.of_start(ablation.NOTHING) is None


@pytest.mark.parametrize("text", ["", "0", "-0.1", "nan", "inf", "much", "0.1 by magic"])
def test_another_noise_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--noise"):
        starts.Noise.parse(text)


def test_what_a_start_is_denoised_with(scratch: Path) -> None:  # noqa: F811
    def told(text: str) -> tuple[float, float]:
        recipe = ablation.denoising_recipe(starts.Noise.parse(text), 8, ablation_settings())
        return recipe.noise, recipe.torsions

    assert told("0.2") == told("0.2 briefly") == (0.2, 0.0)
    assert told("0.1 + torsions") == (0.1, starts.ANGLE)
    one = ablation.Ablation(experiment.Parts([], [], []), ablation_settings())
    one.keep_steps(["own=0.01"], 77)
    assert one.steps(ablation.Case(ablation.LONGER, 5000, 0)) == 30
    assert one.steps(ablation.Case(ablation.BRIEFLY_LONGER, 5000, 0)) == 19


def test_an_energy_that_denoises_is_a_start_with_its_head(
    scratch: Path,  # noqa: F811
) -> None:
    """Its forces point back, in units of sigma; finetuning takes up backbone and head."""
    names = ("CH3CH2OH", "CH3COOH", "CH3OCH3", "C2H4")
    made = [molecule(name) for name in names for _ in range(8)]
    records = [Record(a.numbers, a.positions, -10.0 * len(a), level="x") for a in made]
    (one,) = starts.noised(records[:1], 0.1)
    np.testing.assert_allclose(one.positions + 0.1 * one.forces, records[0].positions)

    settings = ablation_settings() | {"learning_rate": 1e-2}
    recipe = ablation.recipe(ablation.Case("x", 0, 0), 200, settings)
    recipe = recipe.model_copy(update={"held_out": "", "validation": 8, "test": 0})
    info = starts.denoise_by_energy(records, 0.1, recipe, scratch / "denoised")
    assert starts.remaining_loss(info) < 0.9 and info.prior == "zbl"

    labelled = starts.noised(records, 0.05, seed=1)
    frozen = recipe.loop.model_copy(
        update={"learning_rate": 1e-12, "steps": 1, "validate_every": 1}
    )
    recipe = recipe.model_copy(update={"loop": frozen})
    path = scratch / "denoised" / "model.safetensors"
    finetune(labelled, recipe, scratch / "tuned", path, progress=False)
    before, after = (load_model(p)[0].state_dict() for p in (path, scratch / "tuned" / path.name))
    heads = [k for k in before if k.startswith(("head", "backbone"))]
    assert heads and all(torch.allclose(before[k], after[k]) for k in heads)


@pytest.mark.slow
def test_ablation_runs_and_resumes(
    druglike: Any,
    scratch: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not ablation.GEOM2VEC.is_file():
        pytest.skip("needs the published weights of geom2vec beside the clone")
    monkeypatch.setattr(experiment, "TIMED", (1, 1, 3))
    settings = ablation_settings()
    todo = ablation.cases([12], 1, [starts.Noise(0.1)], published=True)
    assert len({case.key for case in todo}) == 5
    one = ablation.Ablation(druglike, settings)
    one.result["seconds_per_step"] = {"own": 0.025, "geom2vec": 0.03}  # else measured
    for case in todo[:2]:
        one.run(case)
    assert list(experiment.stored("ablation")["runs"]) == [case.key for case in todo[:2]]
    backbone = experiment.STATE / "ablation" / "denoised-0.1" / "model.safetensors"
    made = backbone.stat().st_mtime_ns
    again = ablation.Ablation(druglike, settings)
    for case in todo[2:]:
        again.run(case)
    again.run(todo[1])
    assert backbone.stat().st_mtime_ns == made  # denoised once
    runs = experiment.stored("ablation")["runs"]
    assert set(runs) == {case.key for case in todo}
    steps = {row["start"]: row["steps"] for row in runs.values()}
    assert steps[ablation.NOTHING] == steps["denoised 0.1 Å"] == steps[ablation.SAME_STEPS] == 6
    assert steps[ablation.LONGER] > steps[ablation.NOTHING] > steps[ablation.SAME_TIME] == 5
    assert all(np.isfinite(row["test_meV"]["force_mae"]) for row in runs.values())
    sizes = {row["start"]: row["parameters"] for row in runs.values()}
    assert sizes[ablation.SAME_TIME] > 20 * sizes[ablation.NOTHING]
    page = pages(ablation, scratch)
    assert "| 12 | geom2vec, same steps | 1 |" in page and "Denoising, 0.1 Å" in page


def test_a_step_of_the_ablation_is_timed(
    druglike: Any,
    scratch: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(experiment, "TIMED", (1, 1, 3))
    one = ablation.Ablation(druglike, ablation_settings())
    assert one.seconds_per_step("own") == one.result["seconds_per_step"]["own"] > 0


def test_larger_sets_hold_the_smaller_and_no_held_out_molecule(druglike: Any) -> None:
    small, large = (druglike.chosen(n, 3, 5) for n in (10, 30))
    assert [id(r) for r in small[:10]] == [id(r) for r in large[:10]]
    assert [id(r) for r in small[10:]] == [id(r) for r in large[30:]]
    listed = json.loads(experiment.HELD_OUT.read_text())
    held = {*listed["validation"], *listed["test"]}
    assert not held & {r.group for r in large[:30]}
    assert held >= {r.group for r in large[30:]}
    assert [id(r) for r in druglike.chosen(10, 4, 5)[:10]] != [id(r) for r in small[:10]]


def test_the_geom2vec_file_holds_the_published_backbone(shared: Path, scratch: Path) -> None:  # noqa: F811
    model, info = load_model(ablation.geom2vec())
    published = ablation.load_geom2vec_visnet(ablation.GEOM2VEC)[0].state_dict()
    mine = model.backbone.state_dict()
    assert info.config["cutoff"] == 7.5 and not info.config["smooth"]
    assert all(torch.equal(mine[k], published[k]) for k in published)


# --- rMD17 -----------------------------------------------------------------------------------


def test_rmd17_runs_from_every_start(
    shared: Path,
    scratch: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rmd17, "FRAMES", {12: 1})
    model = save_random_model(scratch / "model.safetensors", name=experiment.SHIPPED, **TINY)
    info = load_potential(model)[1].model_copy(update={"kind": "denoiser"})
    denoised = scratch / "denoised.safetensors"
    save(build(info), info, denoised)
    options = ["--model", str(model), "--denoised", str(denoised), "--steps", "3"]
    options += [
        "--learning-rate",
        "1e-3",
        "--batch-atoms",
        "60",
        "--test",
        "20",
        "--threads",
        "1",
        "--compile",
        "no",
    ]
    for _ in range(2):  # the second finds everything done
        done = CliRunner().invoke(rmd17.app, ["run", *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert not done.output.strip()
    runs = experiment.stored("rmd17")["runs"]
    assert len(runs) == 3
    (readme := scratch / "README.md").write_text(f"before\n{rmd17.START}\nold\n{rmd17.END}\nafter")
    page = pages(rmd17, scratch, "--readme", str(readme))
    assert readme.read_text().startswith(f"before\n{rmd17.START}\nrMD17 aspirin")
    assert "| 12 |" in readme.read_text() and "old" not in readme.read_text()
    assert "12 frames" in page and "denoised backbone" in page
    other = save_random_model(scratch / "other.safetensors", **{**TINY, "layers": 3})
    with pytest.raises(InputError, match="architecture"):
        rmd17.read_starts(str(model), str(other))


def test_rmd17_never_tests_on_what_it_learns_from() -> None:
    test, rest = rmd17.parts(list(range(1200)), 500)
    assert len(test) == 500 and not set(test) & set(rest) and len(test) + len(rest) == 1200


def test_rmd17_takes_the_learning_rate_that_validates_better() -> None:
    def row(start: str, rate: float, validation: float, force: float) -> dict[str, Any]:
        errors = {"force_mae": force, "force_rmse": force, "energy_mae": 1.0, "energy_rmse": 1.0}
        return {
            **{"start": start, "frames": 50, "seed": 0, "learning_rate": rate},
            **{"validation_loss": validation, "test_meV": errors},
        }

    # on the test frames the other rate would be better; that may not decide
    rows = [row(rmd17.NOTHING, 1e-3, 0.2, 90.0), row(rmd17.NOTHING, 2e-3, 0.3, 80.0)]
    rows += [row(rmd17.PRETRAINED, 1e-3, 0.05, 25.0)]
    found = rmd17.best({"runs": dict(enumerate(rows))})
    assert rmd17.ratios(found, 50, rmd17.PRETRAINED) == [90.0 / 25.0]
    assert "3.60 times" in rmd17.verdict(found, 50) and "is reached" in rmd17.verdict(found, 50)
    assert "not measured" in rmd17.verdict(found, 200)


def test_rmd17_tells_what_else_was_tried_with_the_same_weights(scratch: Path) -> None:  # noqa: F811
    def row(start: str, error: float) -> dict[str, Any]:
        told = {"start": start, "frames": 50, "seed": 0, "learning_rate": 2e-3}
        return {**told, "validation_loss": 0.1, "test_meV": {"force_mae": error}}

    settings = {"sha256": "a", "optimizer": "muon", "batch_atoms": 84}
    mine = {"settings": settings, "runs": {"0": row(rmd17.NOTHING, 70.0)}}
    assert len(rmd17.choices(mine)) == 1
    runs = {"0": row(rmd17.NOTHING, 90.0), "1": row(rmd17.PRETRAINED, 36.0)}
    other = {"settings": {**settings, "optimizer": "adamw", "batch_atoms": 200}, "runs": runs}
    experiment.store(rmd17.OTHER, other)
    rates, tried = rmd17.choices(mine)
    assert "choose from: 0.002;" in rates
    assert "adamw, 9 frames a step: 2.50 times at 50 frames (36.0 meV/Å)" in tried
    assert len(rmd17.choices({**mine, "settings": {**settings, "sha256": "b"}})) == 1


# --- dimers ----------------------------------------------------------------------------------


class Pairwise(torch.nn.Module):
    """Energy and force of every pair from a formula, with forces that may be wrong."""

    def __init__(self, wrong: float = 0.0, hole: bool = False):
        super().__init__()
        self.wrong, self.hole = wrong, hole

    def forward(self, graph: Any) -> Any:
        from mlpot.graph import edge_vectors
        from mlpot.models.potential import Prediction

        vectors = edge_vectors(graph).requires_grad_(True)
        r = vectors.norm(dim=1)
        pair = (1 - torch.exp(-6.0 * (r - 1.3))).square() - 1  # Morse
        if self.hole:
            pair = pair - 200.0 * torch.exp(-400.0 * (r - 1.0).square())
        energy = torch.zeros(graph.cell.shape[0], dtype=torch.float64)
        energy = energy.index_add(0, graph.batch[graph.edge_index[1]], 0.5 * pair)
        (gradient,) = torch.autograd.grad(energy.sum(), vectors)
        forces = torch.zeros_like(graph.positions).index_add(0, graph.edge_index[1], gradient)
        forces = forces.index_add(0, graph.edge_index[0], -gradient) * (1 + self.wrong)
        return Prediction(energy.detach(), forces, graph.cell, energy)


@pytest.mark.parametrize(
    ("model", "complaints"),
    [
        (Pairwise(), []),
        (Pairwise(wrong=0.01), ["force is no gradient"]),
        (Pairwise(hole=True), ["no wall", "wall not monotone", "attraction below the floor"]),
    ],
    ids=["sound", "wrong forces", "hole"],
)
def test_dimer_checks_against_a_known_curve(
    model: Pairwise,
    complaints: list[str],
    scratch: Path,  # noqa: F811
) -> None:
    info = load_potential(save_random_model(scratch / "m.safetensors", cutoff=6.0))[1]
    deployed = DeployedModel(model, info, "eager", torch.float64)
    row = dimers.measure(deployed, (6, 6))
    assert dimers.failures(row) == complaints
    assert row["r"][0] == pytest.approx(1.52 - 0.6) and row["r"][-1] > 6.0
    if not complaints:
        r = np.array(row["r"])
        energy = (1 - np.exp(-6.0 * (r - 1.3))) ** 2 - 1
        inside = r < 6.0
        np.testing.assert_allclose(np.array(row["energy"])[inside], energy[inside], atol=1e-4)
        assert row["flips"] == 1 and row["deviation"] < 1e-6


def test_dimers_of_a_model_and_their_page(scratch: Path) -> None:  # noqa: F811
    """Beside those of the shipped model, under the name of this one."""
    model = save_random_model(scratch / "m.safetensors", name="mine", **TINY)
    dimers.run(str(model))
    assert not experiment.stored("dimers")
    result = experiment.stored("dimers-mine")
    assert len(result["pairs"]) == 10  # H, C, N, O
    for row in result["pairs"].values():  # a random model has no wall, but its forces are gradients
        assert row["deviation"] < 1e-4 and row["force_at_rim"] < 1e-2
    assert result["pairs"]["H-H"]["r"][0] == dimers.NEAREST
    page = pages(dimers, scratch, "--model", "mine", name="dimers-mine")
    assert "| H-H | 0.62 |" in page and "of 10 |" in page


def test_lone_pairs_that_are_too_short_are_told() -> None:
    def row(pair: str, minimum: float, floor: float) -> dict[str, Any]:
        return {"pair": pair, "radii": 1.0, "floor": floor, "minimum": [minimum, -3.0]}

    rows = [row("H-N", 0.78, 0.83), row("H-C", 0.82, 0.83), row("H-H", 0.7, 1.5)]
    bonds = {"H-N", "H-C"}
    (_, told) = dimers.too_short(rows, bonds)
    assert "H-N 0.78 Å (0.83)" in told and "H-C" not in told and "H-H" not in told
    assert dimers.too_short(rows[1:], bonds) == []
    (_, told) = dimers.wells(rows, bonds)
    assert "H-H -3.0 eV at 0.70 Å" in told and "H-N" not in told


# --- front -----------------------------------------------------------------------------------


def test_the_front_sets_long_trainings_beside_each_other(
    scratch: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the zoo as they are in its history, and one that was trained for the front."""
    front = SCRIPTS["front"]
    keys = ("force_mae", "force_rmse", "energy_mae", "energy_rmse")

    def row(mae: float) -> dict[str, Any]:
        ms = {"ms": dict.fromkeys(front.TIMED, mae / 10)}
        told = {"parameters": 1, "steps": 2, "minutes": 15.0, "meV": dict.fromkeys(keys, 2 * mae)}
        return {**told, **ms}

    long = {"steps": 36000, "meV": dict.fromkeys(keys, 40.0)}
    result = {"3x64, 4 Å": {**row(50.0), "long": long}, "4x64, 4 Å": row(60.0)}
    assert front.size_of("pretrained-visnet", result) == "4x64, 4 Å"
    assert front.size_of("pretrained-visnet-small", result) == ""
    assert front.commands(result) == ["run", "long '3x64, 4 Å' --steps 36000", "time"]
    cycles = {"pretrained-visnet": front.SHIPPED_CYCLES["pretrained-visnet"]}
    monkeypatch.setattr(front, "SHIPPED_CYCLES", cycles)
    labels = {front.LABELLED: {"steps": 48000}, f"{front.LABELLED}, 1": {"steps": 48000}}
    labels |= {f"{front.LABELLED}, {i}": {"steps": 48000} for i in (2, 3)}
    stages = {"denoising": {"steps": 8000}, **labels}
    experiment.store("pretrained-visnet-training", {"stages": stages})
    since = {c: dict.fromkeys(keys, 36.0 - i) for i, c in enumerate(("c4d05ee", "1458007"))}
    experiment.store("pretrained-visnet-cycles", {"commits": since})
    (text,) = front.trained_for_long(result)
    lines = text.splitlines()[-3:]
    assert lines[0].startswith("| 3x64, 4 Å | small | 36,000 | 40.0 | 40.0 | 40.00 | 0.83 |")
    assert lines[1].startswith("| 4x64, 4 Å (pretrained-visnet) | its own | 48,000 | 36.0 |")
    assert lines[2].startswith("| 4x64, 4 Å (pretrained-visnet) | its own | 192,000 | 35.0 |")


def test_all_sizes_are_timed_on_one_machine(
    scratch: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    front = SCRIPTS["front"]
    monkeypatch.setattr(front, "RUNS", scratch / "runs")
    monkeypatch.setattr(front, "MODELS", {"a": TINY, "b": {**TINY, "layers": 1}})
    monkeypatch.setattr(front, "MLPotCalculator", lambda path, engine: MLPotCalculator(path))
    experiment.store("front", {"a": {"steps": 1}, "b": {}})
    assert front.timed_on(experiment.stored("front")) == front.UNTOLD
    front.time_step(threads=1, calls=2)
    result = experiment.stored("front")
    assert all(set(result[name]["ms"]) == set(front.TIMED) for name in "ab")
    assert result["a"]["steps"] == 1 and result["a"]["ms"]["peptide"] > 0
    assert front.timed_on(result) == f" (1 threads, {experiment.machine()})"
    assert set(front.relative_times(result)["a"]) == {"-"}  # nothing to compare it with
    monkeypatch.setattr(front, "BASE", "a")
    assert front.relative_times(result)["a"] == ["1.00", "1.00"]
    ratio = result["b"]["ms"]["peptide"] / result["a"]["ms"]["peptide"]
    assert front.relative_times(result)["b"][1] == f"{ratio:.2f}"
    first = front.untrained("a").read_bytes()
    assert front.untrained("a").read_bytes() == first  # or it would be compiled anew each time


# --- dynamics --------------------------------------------------------------------------------


def molecules() -> list[Any]:
    atoms = ethanol(), methanol_with_water()
    return [
        trajectories.Molecule(f"m{i}", kind, a.numbers, a.positions)
        for i, (a, kind) in enumerate(zip(atoms, ("drug-like", "dimer"), strict=True))
    ]


def test_bonds_are_those_of_the_molecule() -> None:
    first, second = molecules()
    assert len(trajectories.bonds_of(first.numbers, first.positions)) == 8
    assert len(trajectories.bonds_of(second.numbers, second.positions)) == 5 + 2 + 2


def test_the_criterion_finds_the_first_frame_and_the_bond() -> None:
    molecule = molecules()[0]
    bonds = trajectories.bonds_of(molecule.numbers, molecule.positions)
    frames = np.repeat(molecule.positions[None], 10, axis=0).astype(np.float32)
    mean = trajectories.lengths(frames, bonds).mean(axis=0)
    held = trajectories.judged(molecule, frames, mean, 0.05, lost=False)
    assert trajectories.sound(held) and held["stable_ps"] == pytest.approx(0.5)
    hydrogen = int(np.flatnonzero(molecule.numbers == 1)[0])
    partner = int(bonds[(bonds == hydrogen).any(axis=1)][0][0])
    away = molecule.positions[hydrogen] - molecule.positions[partner]
    frames[6:, hydrogen] += (0.4 * away / np.linalg.norm(away)).astype(np.float32)
    assert trajectories.sound(trajectories.judged(molecule, frames, mean, 0.05, lost=False))
    frames[7:, hydrogen] += (0.2 * away / np.linalg.norm(away)).astype(np.float32)
    broken = trajectories.judged(molecule, frames, mean, 0.05, lost=False)
    assert not trajectories.sound(broken) and broken["stable_ps"] == pytest.approx(7 * 0.05)
    assert broken["broke"] == f"{chemical_symbols[molecule.numbers[partner]]}{partner}-H{hydrogen}"
    lost = trajectories.judged(molecule, frames[:0], None, 0.05, lost=True)
    assert not trajectories.sound(lost) and lost["stable_ps"] == 0.0


@pytest.fixture
def tiny_model(tmp_path: Path) -> DeployedModel:
    path = save_random_model(tmp_path / "md.safetensors", scale=0.05, floors={}, **TINY)
    return load(path, engine="eager", dtype="float64")


def replicas_of(model: DeployedModel) -> Any:
    both = molecules()
    return trajectories.Replicas(
        model, [m.numbers for m in both], [m.positions for m in both], friction=1.0, seeds=[5, 6]
    )


def test_a_killed_trajectory_goes_on_as_if_it_had_not_been(
    tiny_model: DeployedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectories, "CHUNK", 20)
    whole = trajectories.simulate(replicas_of(tiny_model), 60, 5, tmp_path / "a", relax=3)
    trajectories.simulate(replicas_of(tiny_model), 40, 5, tmp_path / "b", relax=3)
    # killed after a chunk was written, before its state
    (tmp_path / "b" / "chunk-000000040.npz").write_bytes(b"half")
    resumed = trajectories.simulate(replicas_of(tiny_model), 60, 5, tmp_path / "b", relax=3)
    assert [len(f) for f in whole.frames] == [12, 12] and whole.temperature.shape == (12, 2)
    for a, b in zip(whole.frames, resumed.frames, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(whole.frames[0][-1] - whole.frames[0][0]).max() > 1e-3  # something moves


def test_dynamics_runs_and_resumes(
    scratch: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load("pretrained-visnet", engine="eager")
    runs = [dynamics.Run("300 K", 300.0, 0.02, 0), dynamics.Run("long", 600.0, 0.01, 5)]
    monkeypatch.setattr(dynamics, "RUNS", runs)
    settings = {
        **{"model": "pretrained-visnet", "seed": 1, "batch": 1, "timestep": 0.5},
        **{"friction": 1.0, "frame_fs": 5.0, "share": 0.5},
    }
    for _ in range(2):  # the second reads what the first has stored
        one = dynamics.Dynamics(model, molecules(), settings)
        one.result["nve"] = {"float32": {**NVE, "picoseconds": 0.05}}
        for run in runs:
            one.run(run)
    result = experiment.stored("dynamics")
    assert [len(run["rows"]) for run in result["runs"].values()] == [2, 2]
    rows = [row for run in result["runs"].values() for row in run["rows"]]
    assert all(trajectories.sound(row) and row["temperature"] > 10 for row in rows)
    assert result["runs"]["300 K"]["rows"][0]["stable_ps"] == pytest.approx(0.01)
    page = pages(dynamics, scratch)
    assert "| 300 K | 300 K, 0.01 ps | drug-like | 1 of 1 |" in page
    assert "2 seeds" in page and "+0.0100 ± 0.1271" in page

    # without trajectories, as on another machine, only what has no row in some run is done again
    rmtree(scratch / "state")
    again = result["runs"]["long"]["rows"].pop(0)["name"]
    result["runs"]["300 K"]["rows"][1]["stable_ps"] = 123.0
    experiment.store("dynamics", result)
    one = dynamics.Dynamics(model, molecules(), settings)
    batches: list[str] = []
    simulate = dynamics.Dynamics.simulate
    monkeypatch.setattr(
        dynamics.Dynamics,
        "simulate",
        lambda self, run, chosen, number: (
            batches.extend(m.name for m in chosen),
            simulate(self, run, chosen, number),
        )[1],
    )
    for run in runs:
        one.run(run)
    assert batches == [again, again]
    kept = experiment.stored("dynamics")["runs"]
    assert [len(run["rows"]) for run in kept.values()] == [2, 2]
    assert kept["300 K"]["rows"][1]["stable_ps"] == 123.0


NVE = {"slopes": [0.0, 0.02], "fluctuation": 0.1, "temperature": 301.0, "timestep": 0.5}


def test_nve_of_a_smooth_model_hardly_drifts(tiny_model: DeployedModel) -> None:
    found = dynamics.nve_drift(tiny_model, 0.05, 2, 0.005)
    assert not found["lost"] and len(found["slopes"]) == 2
    assert found["fluctuation"] < 1.0 and 50 < found["temperature"] < 1000


def test_confidence_interval() -> None:
    mean, half = dynamics.interval_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0 and half == pytest.approx(1.9632, abs=1e-4)  # 2.776 * 1.5811 / sqrt(5)


def test_a_molecule_that_is_passed_over_leaves_the_others(frames: list[Record]) -> None:
    test = [frames[i] for i in dynamics.split_held_out(frames, dynamics.HELD_OUT).test]
    before = [m.name for m in trajectories.choose(test, 2026)]
    after = [m.name for m in trajectories.choose(test, 2026, passed={before[3]})]
    assert before[3] not in after and set(before) - set(after) == {before[3]}


def test_molecules_are_drawn_from_the_test_part_alone(frames: list[Record]) -> None:
    test = [frames[i] for i in dynamics.split_held_out(frames, dynamics.HELD_OUT).test]
    chosen = trajectories.choose(test, 2026)
    assert [m.name for m in chosen] == [m.name for m in trajectories.choose(test, 2026)]
    kinds = [m.kind for m in chosen]
    assert [kinds.count(k) for k in trajectories.KINDS] == [20, 10, 10]
    held = set(json.loads(experiment.HELD_OUT.read_text())["test"])
    assert held >= {m.name for m in chosen} and len({m.name for m in chosen}) == 40
    assert len({m.name for m in trajectories.for_long_runs(chosen, 5)}) == 5


def test_states_of_other_settings_are_refused(scratch: Path) -> None:  # noqa: F811
    dynamics._check_state("dynamics", {"sha256": "a", "nve_ps": 1.0})
    dynamics._check_state("dynamics", {"sha256": "a", "nve_ps": 2.0})
    with pytest.raises(InputError, match="other settings"):
        dynamics._check_state("dynamics", {"sha256": "b", "nve_ps": 1.0})
