"""How well extrapolation grades tell large force errors from small ones.

    python -m benchmarks.guard.calibrate run --mode standard     # results/calibration-standard.json
    python -m benchmarks.guard.calibrate render --mode standard  # results/calibration-standard.md

Two questions, with errors of frames never trained on:

* acac: a model fine-tuned on acetylacetone at 300 K (PBE-D3), asked about 300 K and 600 K.
* drug-like: the shipped model, asked about molecules held out in its recipe (AIMNet2 labels).

The grade of mlpot is the product's: from the statistics that the model's file holds, and of a frame
the largest of its atoms. The other rows are fitted anew to training frames, and compared in the
same way; "rms" is a frame's root mean square instead, which no product uses. A committee is of
fine-tunings of acac that differ in seed and split.

A large error is one above three times the median of frames like the training set: an atom's
|F - F label|, or the root mean square of those of a frame. ROC-AUC is the chance that an atom (or
frame) with a large error has a higher grade than one without.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.accuracy.experiment import (
    commit,
    known,
    machine,
    of_model,
    read_results,
    write_results,
)
from benchmarks.guard.areas import auc, blocks, interval, molecules, shown
from benchmarks.guard.distances import (
    Score,
    by_element,
    expected_error,
    itself,
    mahalanobis,
    neighbours,
)
from benchmarks.guard.features import Atoms, disagreement, look, per_frame
from mlpot.data.formats import read, read_all
from mlpot.data.record import Record
from mlpot.data.references import split_isolated
from mlpot.data.splits import load_split, split_held_out
from mlpot.deploy.grader import CommitteeGrader
from mlpot.models.checkpoint import load_extrapolation, load_potential, write_atomically
from mlpot.train.finetune import FinetuneConfig, finetune
from mlpot.train.guard import LARGE
from mlpot.zoo import resolve

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
HELD_OUT = ROOT / "mlpot" / "zoo" / "recipes" / "held_out.json"
RESULTS = Path(__file__).parent / "results"
TRAINED_ON = [
    "druglike_aimnet2/frames.h5",
    "spice_des_monomers_aimnet2.h5",
    "spice_solvated_amino_acids_aimnet2.h5",
    "spice_water60_aimnet2.h5",
]
FRAMES = {"dev": (300, 100), "fast": (5000, 1500), "standard": (20_000, 4000)}
STEPS = {"dev": 100, "fast": 800, "standard": 800}
OURS = "grade of mlpot"
COLUMNS = ("atom", "frame", "frame_rms")
JOINED = "the larger of it and the committee's"

#: name -> features, and how they are compared
VARIANTS: dict[str, tuple[str, Callable[..., Score]]] = {
    "predicted force alone": ("force", itself),
    "Mahalanobis, scalars": ("scalars", mahalanobis),
    "the same, one covariance for all elements": (
        "scalars",
        lambda *given: mahalanobis(*given, pooled=True),
    ),
    "the same, 32 principal components": (
        "scalars",
        lambda *given: mahalanobis(*given, components=32),
    ),
    "Mahalanobis, scalars and predicted force": ("scalars, force", mahalanobis),
    "Mahalanobis, vector lengths": ("vector lengths", mahalanobis),
    "Mahalanobis, scalars and vector lengths": ("scalars, vector lengths", mahalanobis),
    "Mahalanobis, every layer": ("every layer", mahalanobis),
    "Mahalanobis, last hidden layer": ("last hidden layer", mahalanobis),
    "the same, over the quantile of each element": ("last hidden layer", by_element(mahalanobis)),
    "4 nearest neighbours, scalars": ("scalars", neighbours),
    "4 nearest neighbours, last hidden layer": ("last hidden layer", neighbours),
    "expected error, scalars and vector lengths": ("scalars, vector lengths", expected_error),
    "expected error, every layer": ("every layer", expected_error),
    "expected error, last hidden layer": ("last hidden layer", expected_error),
    "the same, with neighbours": ("last hidden layer, neighbours", expected_error),
}
app = typer.Typer(add_completion=False)


def areas(
    scores: list[NDArray],
    asked: list[Atoms],
    inside: Atoms,
    clusters: list[NDArray] | None = None,
) -> dict[str, Any]:
    """AUC of atoms; of frames by their largest grade, and by the root mean square of grades.

    Args:
        clusters: [frames] of each of ``asked``; with them, intervals of the first two as well.
    """
    median = np.median(inside.error)
    usual = np.median(per_frame(inside, inside.error, "rms"))
    large = np.concatenate([a.error for a in asked]) > LARGE * median
    wrong = np.concatenate([per_frame(a, a.error, "rms") for a in asked]) > LARGE * usual
    pairs = list(zip(asked, scores, strict=True))
    each, worst = np.concatenate(scores), np.concatenate([per_frame(a, s, "max") for a, s in pairs])
    found: dict[str, Any] = {
        "atom": auc(each, large),
        "frame": auc(worst, wrong),
        "frame_rms": auc(np.concatenate([per_frame(a, s, "rms") for a, s in pairs]), wrong),
    }
    if clusters is not None:
        of_atoms = np.concatenate([c[a.frame] for a, c in zip(asked, clusters, strict=True)])
        found["atom_interval"] = interval(each, large, of_atoms)
        found["frame_interval"] = interval(worst, wrong, np.concatenate(clusters))
    return found


def compared(
    training: Atoms,
    asked: list[Atoms],
    inside: Atoms,
    clusters: list[NDArray],
    more: dict[str, list[NDArray]] | None = None,
) -> dict[str, Any]:
    """AUC of every variant; the errors that it is about.

    Args:
        clusters: which frames of each of ``asked`` resemble each other.
        more: name -> grades of ``asked``, known already.
    """
    given = {OURS: [a.grade for a in asked], **(more or {})}
    rows = {name: areas(scores, asked, inside, clusters) for name, scores in given.items()}
    for name, (kind, make) in VARIANTS.items():
        score = make(training.features[kind], training.numbers, training.error)
        rows[name] = areas([score(a.features[kind], a.numbers) for a in asked], asked, inside)
    for name, row in rows.items():
        typer.echo(f"  {name}: " + ", ".join(f"{k} {shown(row[k])}" for k in COLUMNS))
    usual = np.median(per_frame(inside, inside.error, "rms"))
    atoms = np.concatenate([a.error for a in asked]) > LARGE * np.median(inside.error)
    frames = np.concatenate([per_frame(a, a.error, "rms") for a in asked]) > LARGE * usual
    return {
        "median_error_meV_per_A": {
            "atom": 1e3 * float(np.median(inside.error)),
            "frame": 1e3 * float(usual),
        },
        "large": {"atoms": float(atoms.mean()), "frames": float(frames.mean())},
        "asked": {"atoms": len(atoms), "frames": len(frames)},
        "auc": rows,
    }


def above(atoms: Atoms) -> dict[str, float]:
    """Shares of frames above the line and beyond."""
    worst = per_frame(atoms, atoms.grade, "max")
    return {
        "frames": len(worst),
        "median": float(min(np.median(worst), 1e9)),  # infinity is no JSON
        **{f"above_{x:g}": float((worst > x).mean()) for x in (1.0, 1.5, 2.0)},
    }


def recipe(mode: str, seed: int = 0) -> FinetuneConfig:
    loop = {"steps": STEPS[mode], "validate_every": STEPS[mode], "seed": seed}
    told: dict[str, Any] = {"name": f"acac-{seed}", "validation": 50, "test": 0, "loop": loop}
    return FinetuneConfig.model_validate(told)


def acac(mode: str, start: Path, folder: Path, members: int) -> dict[str, Any]:
    """Fine-tuned on 300 K; 600 K, dihedral scan and H transfer lie outside."""
    records = split_isolated(read(DATA / "acac" / "train_300K.xyz.gz"))[1]
    paths = [folder / f"seed-{seed}" / "model.safetensors" for seed in range(members)]
    for seed, path in enumerate(paths):
        finetune(records, recipe(mode, seed), path.parent, start, progress=False)
    model = load_potential(paths[0])[0]
    fitted = load_extrapolation(paths[0])
    split = load_split(paths[0].parent / "split.json", records)
    training = [records[i] for i in split.train]
    names = ("test_MD_300K", "test_MD_600K", "test_dihedral", "test_H_transfer")
    frames = {n: read(DATA / "acac" / f"{n}.xyz.gz") for n in names}
    sets = {n: look(model, of, fitted) for n, of in frames.items()}
    asked = [sets[n] for n in names[:2]]
    more = committee_grades(paths, [frames[n] for n in names[:2]], asked)
    of = [blocks(frames[names[0]]), blocks(frames[names[1]], len(frames[names[0]]))]
    told = compared(look(model, training, fitted), asked, asked[0], of, more)
    return told | {"above": {n: above(a) for n, a in sets.items()}, **describe(paths[0])}


def committee_grades(
    paths: list[Path], frames: list[list[Record]], asked: list[Atoms]
) -> dict[str, list[NDArray]]:
    """Of the committee, and what `mlpot md` takes where it is given one; none of one model."""
    if len(paths) < 2:
        return {}
    committee = CommitteeGrader(paths)
    found = [disagreement(committee, of) for of in frames]
    joined = [np.maximum(a.grade, c) for a, c in zip(asked, found, strict=True)]
    return {f"committee of {len(paths)}": found, JOINED: joined}


def druglike(mode: str, path: Path) -> dict[str, Any]:
    """The shipped model on molecules of its test part; errors like those of its validation part
    are usual."""
    model, (train, held) = load_potential(path)[0], FRAMES[mode]
    records = read_all([DATA / f for f in TRAINED_ON])
    split = split_held_out(records, HELD_OUT)
    rng = np.random.default_rng(0)

    def some(part: NDArray, count: int) -> list[Record]:
        return [records[i] for i in np.sort(rng.permutation(part)[:count])]

    training, validation = some(split.train, train), some(split.validation, held)
    fitted = load_extrapolation(path)
    inside = look(model, validation, fitted)
    test = some(split.test, held)
    asked = [look(model, test, fitted)]
    few = look(model, training[:: max(1, train // 5000)], fitted)
    told = compared(few, asked, inside, [molecules(test)])
    return told | {"above": {"test": above(asked[0])}, **describe(path)}


def describe(path: Path) -> dict[str, Any]:
    """Statistics as the model's file holds them, and which file that is."""
    told, tensors = load_potential(path)[1], load_file(path)
    size = sum(t.nbytes for name, t in tensors.items() if name.startswith("extrapolation."))
    assert told.extrapolation is not None
    return {"statistics": told.extrapolation.model_dump(), "bytes": size, "sha256": told.sha256}


def settings_of(mode: str, path: Path, members: int) -> dict[str, Any]:
    """What decides the numbers."""
    info = load_potential(path)[1]
    return {
        "mode": mode,
        "model": {"name": info.name, "sha256": info.sha256},
        "large": LARGE,
        "frames": list(FRAMES[mode]),
        "members": members,
        "acac": recipe(mode).model_dump(mode="json"),
        "druglike": TRAINED_ON,
        "held_out": hashlib.sha256(HELD_OUT.read_bytes()).hexdigest(),
    }


Mode = Annotated[str, typer.Option("--mode", help="dev, fast or standard")]


@app.command()
def run(
    mode: Mode = "fast",
    model: str = "pretrained-visnet",
    members: Annotated[int, typer.Option(help="of acac's committee; 1 for none")] = 3,
    folder: Path = ROOT / "runs" / "guard",
) -> None:
    """Measure and write results/calibration-MODE.json."""
    torch.set_num_threads(1)
    path = resolve(model)
    settings = settings_of(known(mode, FRAMES), path, members)
    typer.echo("acac")
    # trainings of other weights lie elsewhere
    trained = folder / f"acac-{mode}-{settings['model']['sha256'][:8]}"
    result = {"settings": settings, "commit": commit(), "machine": machine()}
    result["acac"] = acac(mode, path, trained, members)
    typer.echo("drug-like")
    result["druglike"] = druglike(mode, path)
    write_results(file_of(mode, settings["model"]["name"]), result)
    render(mode, settings["model"]["name"])


def file_of(mode: str, model: str) -> Path:
    """The mode dev says that it works, and is no result."""
    folder = ROOT / "runs" / "guard" if mode == "dev" else RESULTS
    return folder / f"{of_model(f'calibration-{mode}', model)}.json"


@app.command()
def render(mode: Mode = "fast", model: str = "pretrained-visnet") -> None:
    """results/calibration-MODE.md from results/calibration-MODE.json."""
    file = file_of(known(mode, FRAMES), model)
    text = page(read_results(file))
    write_atomically(file.with_suffix(".md"), text.encode())
    typer.echo(text)


def ends(told: dict[str, Any]) -> str:
    """Intervals of the product's grade, and the size of its statistics."""
    row = told["auc"][OURS]
    known = [(k, row[f"{k}_interval"]) for k in ("atom", "frame") if row.get(f"{k}_interval")]
    cells = [f"{shown(low)} to {shown(high)} ({name})" for name, (low, high) in known]
    sure = f"95 % intervals of the grade's: {', '.join(cells)}. " if cells else ""
    return f"{sure}Statistics in the file: {told['bytes'] / 1000:.1f} kB."


def page(result: dict[str, Any]) -> str:
    """The tables."""
    parts = ("acac", "druglike")
    cells = "atom | frame | frame, rms"
    lines = [
        f"ROC-AUC of an error above {result['settings']['large']:g} times the usual; of a frame by "
        "the largest grade of its atoms, as the guard does (rms: by their root mean square).",
        "",
        f"| grade | acac: {cells} | drug-like: {cells} |",
        "|---|" + "---|" * 6,
    ]
    names = dict.fromkeys(name for part in parts for name in result[part]["auc"])
    for name in names:
        found = [result[p]["auc"].get(name, {}).get(k) for p in parts for k in COLUMNS]
        lines.append(f"| {name} | {' | '.join(map(shown, found))} |")
    for part in parts:
        told, large = result[part]["asked"], result[part]["large"]
        lines += [
            "",
            f"{part}: {told['atoms']:,} atoms, {100 * large['atoms']:.1f} % with a large error; "
            f"{told['frames']:,} frames, {100 * large['frames']:.1f} %. {ends(result[part])}",
        ]
    lines += [
        "",
        "The form of the grade was chosen among these rows and its constants on acetylacetone, by "
        "some of these frames, so its areas are a little too good.",
    ]
    lines += ["", "| frames | number | median grade | above 1 | above 1.5 | above 2 |"]
    lines += ["|---|---|---|---|---|---|"]
    for part in parts:
        for name, row in result[part]["above"].items():
            shares = " | ".join(f"{100 * row[f'above_{x:g}']:.1f} %" for x in (1.0, 1.5, 2.0))
            lines.append(f"| {part}, {name} | {row['frames']} | {row['median']:.2f} | {shares} |")
    s = result["settings"]
    weights = f"{s['model']['name']} {s['model']['sha256'][:8]}"
    lines += ["", f"Weights (SHA-256): {weights}. Commit {result['commit']}; {result['machine']}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()
