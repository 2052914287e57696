"""How well extrapolation grades tell large force errors from small ones.

    python benchmarks/guard/calibrate.py run --mode standard     # writes results/calibration.json
    python benchmarks/guard/calibrate.py render                  # writes results/calibration.md

Two questions, each with statistics fitted anew to training frames, and errors of frames never
trained on:

* acac: a model fine-tuned on acetylacetone at 300 K (PBE-D3), asked about 300 K and 600 K.
* drug-like: the shipped model, asked about molecules held out in its recipe (AIMNet2 labels).

A large error is one above three times the median of frames like the training set: an atom's
|F - F label|, or the root mean square of those of a frame. ROC-AUC is the chance that an atom (or
frame) with a large error has a higher grade than one without.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from distances import Score, by_element, expected_error, itself, mahalanobis, neighbours
from features import Atoms, look, per_frame
from numpy.typing import NDArray
from scipy.stats import rankdata

from mlpot.data.formats import read, read_all
from mlpot.data.record import Record
from mlpot.data.references import split_isolated
from mlpot.data.splits import load_split, split_held_out
from mlpot.models.checkpoint import load_potential
from mlpot.models.extrapolation import Extrapolation
from mlpot.train.finetune import FinetuneConfig, finetune
from mlpot.train.guard import fit_guard
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
LARGE = 3.0  # times the median error
FRAMES = {"dev": (300, 100), "fast": (5000, 1500), "standard": (20_000, 4000)}
STEPS = {"dev": 100, "fast": 800, "standard": 800}
OURS = "grade of mlpot"

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


def auc(score: NDArray, positive: NDArray) -> float | None:
    """Area under the ROC curve; None if there is one class only."""
    yes = int(positive.sum())
    no = len(positive) - yes
    if not (yes and no):
        return None
    ranks = rankdata(np.minimum(score, 1e9))
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def shown(area: float | None) -> str:
    return "–" if area is None else f"{area:.3f}"


def areas(scores: list[NDArray], asked: list[Atoms], inside: Atoms) -> dict[str, float | None]:
    """AUC of atoms; of frames by their largest grade, and by the root mean square of grades."""
    median = np.median(inside.error)
    usual = np.median(per_frame(inside, inside.error, "rms"))
    large = np.concatenate([a.error for a in asked]) > LARGE * median
    wrong = np.concatenate([per_frame(a, a.error, "rms") for a in asked]) > LARGE * usual
    pairs = list(zip(asked, scores, strict=True))
    return {
        "atom": auc(np.concatenate(scores), large),
        "frame": auc(np.concatenate([per_frame(a, s, "max") for a, s in pairs]), wrong),
        "frame_rms": auc(np.concatenate([per_frame(a, s, "rms") for a, s in pairs]), wrong),
    }


def compared(training: Atoms, asked: list[Atoms], inside: Atoms) -> dict[str, Any]:
    """AUC of every variant; the errors that it is about."""
    rows = {OURS: areas([a.grade for a in asked], asked, inside)}
    for name, (kind, make) in VARIANTS.items():
        score = make(training.features[kind], training.numbers, training.error)
        found = [score(a.features[kind], a.numbers) for a in asked]
        rows[name] = areas(found, asked, inside)
        typer.echo(f"  {name}: " + ", ".join(f"{k} {shown(v)}" for k, v in rows[name].items()))
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
        "median": float(np.median(worst)),
        **{f"above_{x:g}": float((worst > x).mean()) for x in (1.0, 1.5, 2.0)},
    }


def acac(mode: str, name: str, folder: Path) -> dict[str, Any]:
    """Fine-tuned on 300 K; 600 K, dihedral scan and H transfer lie outside."""
    records = split_isolated(read(DATA / "acac" / "train_300K.xyz.gz"))[1]
    recipe: dict[str, Any] = {"name": "acac", "validation": 50, "test": 0}
    loop = {"steps": STEPS[mode], "validate_every": STEPS[mode]}
    config = FinetuneConfig.model_validate(recipe | {"loop": loop})
    finetune(records, config, folder, resolve(name), progress=False)
    model, _ = load_potential(folder / "model.safetensors")
    split = load_split(folder / "split.json", records)
    training, held = ([records[i] for i in part] for part in (split.train, split.validation))
    fitted = fit_guard(model, training, held)
    names = ("test_MD_300K", "test_MD_600K", "test_dihedral", "test_H_transfer")
    sets = {n: look(model, read(DATA / "acac" / f"{n}.xyz.gz"), fitted) for n in names}
    asked = [sets["test_MD_300K"], sets["test_MD_600K"]]
    told = compared(look(model, training, fitted), asked, asked[0])
    return told | {"above": {n: above(a) for n, a in sets.items()}, **describe(fitted)}


def druglike(mode: str, name: str) -> dict[str, Any]:
    """The shipped model on molecules of its test part; the line is set by its validation part."""
    (model, _), (train, held) = load_potential(resolve(name)), FRAMES[mode]
    records = read_all([DATA / f for f in TRAINED_ON])
    split = split_held_out(records, HELD_OUT)
    rng = np.random.default_rng(0)

    def some(part: NDArray, count: int) -> list[Record]:
        return [records[i] for i in np.sort(rng.permutation(part)[:count])]

    training, validation = some(split.train, train), some(split.validation, held)
    fitted = fit_guard(model, training, validation)
    inside = look(model, validation, fitted)
    asked = [look(model, some(split.test, held), fitted)]
    few = look(model, training[:: max(1, train // 5000)], fitted)
    return compared(few, asked, inside) | {"above": {"test": above(asked[0])}, **describe(fitted)}


def describe(fitted: Extrapolation) -> dict[str, Any]:
    size = sum(t.numel() * t.element_size() for t in fitted.state_dict().values())
    return {"statistics": fitted.info.model_dump(), "bytes": size}


@app.command()
def run(mode: str = "fast", model: str = "pretrained-visnet", folder: Path = Path("runs/guard")):
    """Measure and write results/calibration.json."""
    torch.set_num_threads(1)
    typer.echo("acac")
    result = {
        "mode": mode,
        "model": Path(model).stem,
        "acac": acac(mode, model, folder / f"acac-{mode}"),
    }
    typer.echo("drug-like")
    result["druglike"] = druglike(mode, model)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "calibration.json").write_text(json.dumps(result, indent=2) + "\n")
    render()


@app.command()
def render() -> None:
    """results/calibration.md from results/calibration.json."""
    result = json.loads((RESULTS / "calibration.json").read_text())
    parts = ("acac", "druglike")
    lines = [
        "| grade | acac: atom | frame | drug-like: atom | frame |",
        "|---|---|---|---|---|",
    ]
    for name in (OURS, *VARIANTS):
        cells = [shown(result[p]["auc"][name][k]) for p in parts for k in ("atom", "frame_rms")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| frames | number | median grade | above 1 | above 1.5 | above 2 |"]
    lines += ["|---|---|---|---|---|---|"]
    for part in parts:
        for name, row in result[part]["above"].items():
            shares = " | ".join(f"{100 * row[f'above_{x:g}']:.1f} %" for x in (1.0, 1.5, 2.0))
            lines.append(f"| {part}, {name} | {row['frames']} | {row['median']:.2f} | {shares} |")
    (RESULTS / "calibration.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    app()
