"""Measure a model of the zoo and write its card.

    python benchmarks/accuracy/model_card.py run --mode standard    # errors by subset
    python benchmarks/accuracy/model_card.py teacher aimnet2.jpt    # those of the label source
    python benchmarks/accuracy/model_card.py training runs/energies runs/energies-2 \
        --denoise runs/denoise
    python benchmarks/accuracy/model_card.py render                 # card and README table

Of another model than pretrained-visnet: `--name`, with the same recipes under that name.

Held-out molecules are those of mlpot/zoo/recipes/held_out.json; no frame of theirs was seen in
either training step. Zero-shot sets are real quantum chemistry that was never trained on. The
other experiments of this folder add their tables, where they have measured the same weights.
"""

import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dynamics
import numpy as np
import side_by_side
import torch
import typer
from ase import Atoms
from ase.data import chemical_symbols
from card_page import card
from card_tables import SMILES, TEACHER, ZERO_SHOT, in_short, tables
from experiment import (  # this folder is where the script runs
    DATA,
    HELD_OUT,
    ROOT,
    SHIPPED,
    TRAINED_ON,
    commit,
    content_at,
    fill,
    machine,
    millis,
    save_plot,
    store,
    stored,
)
from history import (
    LABELLED,
    plot_learning_curve,
    read_stage,
)
from relations import bonds, frames_of, molecules, never_met, shared_partners

from mlpot.data.calculators import AIMNet2
from mlpot.data.formats import read, read_all
from mlpot.data.record import Record
from mlpot.data.splits import split_held_out
from mlpot.models.checkpoint import load, load_potential
from mlpot.models.potential import Potential
from mlpot.train.finetune import evaluate
from mlpot.zoo import resolve

__all__ = ["DATA", "ROOT", "TRAINED_ON", "app"]

FRAMES = {"dev": 60, "fast": 600, "standard": 10**9}
ZERO_SHOT_FRAMES = 1000
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# --- measure ---------------------------------------------------------------------------------


def spread(records: list[Record], count: int) -> list[Record]:
    """At most `count` records, evenly spaced."""
    return records[:: max(1, -(-len(records) // count))]


def errors_of(model: Potential, records: list[Record]) -> dict[str, float]:
    counts = {"molecules": molecules(records), "frames": len(records)}
    return {**counts, **millis(evaluate(model, records)._asdict())}


def subset_of(record: Record) -> str:
    if record.subset:
        return record.subset
    if len(record.numbers) < 40:
        return "DES monomers"
    return "water cluster" if record.group == "water" else "solvated amino acid"


def zero_shot_sets(elements: list[int], count: int) -> dict[str, list[Record]]:
    sets = {name: read(DATA / file) for name, file in ZERO_SHOT.items()}
    covered = set(elements)
    known = {k: [r for r in v if set(r.numbers.tolist()) <= covered] for k, v in sets.items()}
    return {name: spread(records, count) for name, records in known.items()}


def described(train: list[Record]) -> dict[str, Any]:
    """Sizes and elements of the training frames."""
    sizes = [len(r.numbers) for r in train]
    atoms = Counter(np.concatenate([r.numbers for r in train]).tolist())
    return {
        "training_frames": len(train),
        "atoms_in_a_frame": [min(sizes), int(np.median(sizes)), max(sizes)],
        "atoms_of_element": {chemical_symbols[z]: n for z, n in sorted(atoms.items())},
    }


@app.command()
def run(model: str = SHIPPED, mode: str = "fast", threads: int = 2) -> None:
    """Measure errors and write results/<name>.json."""
    torch.set_num_threads(threads)
    started = time.perf_counter()
    count = FRAMES[mode]
    potential, info = load_potential(resolve(model))
    parts = parts_of_data()
    train, held, test = parts.values()
    subsets = by_subset(test)
    zero_shot = zero_shot_sets(info.elements, min(count, ZERO_SHOT_FRAMES))
    no_dimers = [r for r in test if "." not in r.group]
    result: dict[str, Any] = {
        "model": info.name,
        "sha256": info.weights_sha256,
        "mode": mode,
        "parameters": sum(p.numel() for p in potential.parameters()),
        **described(train),
        "molecules": {k: molecules(v) for k, v in parts.items()},
        "held_out": {n: errors_of(potential, spread(r, count)) for n, r in subsets.items()},
        "held_out_but_dimers": errors_of(potential, spread(no_dimers, count)),
        "held_out_all": errors_of(potential, spread(test, count)),
        "relations": related(potential, train, subsets, count),
        "validation": errors_of(potential, spread(held, count)),
        "zero_shot_forces": {n: errors_of(potential, r) for n, r in zero_shot.items()},
        "zero_shot_in_training": {n: frames_of(SMILES[n], train) for n in zero_shot},
        "commit": commit(),
        "machine": machine(),
    }
    store(info.name, {**result, "seconds": round(time.perf_counter() - started, 1)})
    typer.echo(f"wrote results/{info.name}.json")


def parts_of_data() -> dict[str, list[Record]]:
    """Frames of "train", "validation" and "test"."""
    records = read_all([DATA / f for f in TRAINED_ON])
    split = split_held_out(records, HELD_OUT)
    names = ("train", "validation", "test")
    return {name: [records[i] for i in getattr(split, name)] for name in names}


def by_subset(test: list[Record]) -> dict[str, list[Record]]:
    return {n: [r for r in test if subset_of(r) == n] for n in sorted(set(map(subset_of, test)))}


def related(
    model: Potential, train: list[Record], subsets: dict[str, list[Record]], count: int
) -> dict[str, Any]:
    """What the molecules of the test part have to do with training, and bonds in training.

    Errors are of those sets a part of whose molecules training has as partners in dimers.
    """
    singles = {n: [r for r in of if "." not in r.group] for n, of in subsets.items()}
    new = {n: never_met(train, of) for n, of in singles.items()}
    dimers = [r for of in subsets.values() for r in of if "." in r.group]
    return {
        "partners": {n: molecules(of) - molecules(new[n]) for n, of in singles.items() if of},
        "errors_of_new": {
            n: errors_of(model, spread(new[n], count))
            for n, of in singles.items()
            if 0 < len(new[n]) < len(of)
        },
        "dimers": shared_partners(train, dimers),
        "bonds": bonds(train),
        "commit": commit(),
        "machine": machine(),
    }


@app.command()
def relations(model: str = SHIPPED, threads: int = 2) -> None:
    """Measure anew only what held-out molecules have to do with training; `run` does it as well."""
    torch.set_num_threads(threads)
    potential, info = load_potential(resolve(model))
    result = stored(info.name)
    if result.get("sha256") != info.weights_sha256:
        sys.exit(f"results/{info.name}.json is of other weights: `run`")
    parts = parts_of_data()
    found = related(potential, parts["train"], by_subset(parts["test"]), FRAMES[result["mode"]])
    counts = {k: molecules(v) for k, v in parts.items()}
    for name, count in (
        ("held_out_all", counts["test"]),
        ("held_out_but_dimers", molecules(r for r in parts["test"] if "." not in r.group)),
    ):
        result[name]["molecules"] = count
    store(info.name, {**result, "molecules": counts, "relations": found})
    typer.echo(f"wrote results/{info.name}.json")


@app.command()
def cycles(commits: str, name: str = SHIPPED, threads: int = 2) -> None:
    """Validation errors of the weights that these commits (COMMIT,COMMIT,...) brought, on the
    molecules that are held out today: learning curves may be of others."""
    torch.set_num_threads(threads)
    held = parts_of_data()["validation"]
    found = {}
    for which in commits.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            path.write_bytes(content_at(which, ROOT / "mlpot" / "zoo" / f"{name}.safetensors"))
            potential, info = load_potential(path)
        found[which] = {"sha256": info.weights_sha256, **errors_of(potential, held)}
    store(f"{name}-cycles", {"commits": found, "commit": commit(), "machine": machine()})
    typer.echo(json.dumps(found, indent=1))


@app.command()
def teacher(model: Path, count: int = ZERO_SHOT_FRAMES) -> None:
    """Errors of the label source itself (an AIMNet2 .jpt file) against quantum chemistry."""
    calculator = AIMNet2(model)
    found = {}
    for name, records in zero_shot_sets([1, 6, 7, 8], count).items():
        errors = []
        for record in records:
            atoms = Atoms(record.numbers, record.positions, calculator=calculator)
            errors.append(atoms.get_forces() - record.forces)
        off = 1e3 * np.concatenate(errors)
        found[name] = {
            "frames": len(records),
            "force_mae": float(np.abs(off).mean()),
            "force_rmse": float(np.sqrt(np.square(off).mean())),
        }
    told = {"file": model.name, "sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    store(TEACHER, {**told, "zero_shot_forces": found, "commit": commit(), "machine": machine()})
    typer.echo(json.dumps(found, indent=1, ensure_ascii=False))


@app.command()
def training(
    energies: list[Path],
    denoise: Path | None = None,
    name: str = SHIPPED,
    remark: str = "",
) -> None:
    """Keep learning curves, seeds and times of training folders in results: denoising, then
    energies and forces, each started from the one before."""
    folders = {"denoising": denoise} if denoise else {}
    folders |= {LABELLED + (f", {i}" if i else ""): folder for i, folder in enumerate(energies)}
    stages = {k: read_stage(folder) for k, folder in folders.items()}
    counts = json.loads((energies[-1] / "split.json").read_text())["counts"]
    sha256 = load_potential(energies[-1] / "model.safetensors")[1].weights_sha256
    told = {"sha256": sha256, "frames": counts["train"], "remark": remark, "stages": stages}
    store(f"{name}-training", told)
    typer.echo(f"wrote results/{name}-training.json")


@app.command()
def install(
    model: str,
    summary: str = typer.Option(..., help="One line for `mlpot models`."),
    name: str = SHIPPED,
    card: str = typer.Option("", help="its card, if not that of its own name"),
) -> None:
    """Put a model file into the zoo under a name, with its hash in the registry."""
    zoo = ROOT / "mlpot" / "zoo"
    load(model)  # whole
    content = Path(model).read_bytes()
    (zoo / f"{name}.safetensors").write_bytes(content)
    registry = json.loads((zoo / "registry.json").read_text())
    registry[name] = {
        "file": f"{name}.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
        "card": card or f"{name}.md",
        "summary": summary,
    }
    (zoo / "registry.json").write_text(json.dumps(registry, indent=2, sort_keys=True) + "\n")
    typer.echo(f"{name}: {len(content) / 1e6:.2f} MB in mlpot/zoo")


# --- write -----------------------------------------------------------------------------------


@app.command()
def render(name: str = SHIPPED) -> None:
    """Write the card from the results, and the README's table for the model of mlpot's name."""
    result, info = stored(name), load_potential(resolve(name))[1]
    if not result or result["mode"] != "standard":
        sys.exit(f"a card needs results/{name}.json of --mode standard; measure it with `run`")
    if result.get("sha256") != info.weights_sha256:
        sys.exit(f"results/{name}.json is of other weights than the zoo's; measure them with `run`")
    training = stored(f"{name}-training")
    if training.get("sha256") != info.weights_sha256:
        typer.echo("no training record of these weights; see `training`", err=True)
        training = {}
    if stages := training.get("stages"):
        save_plot(plot_learning_curve(stages), f"{name}-training")
    (ROOT / "mlpot" / "zoo" / f"{name}.md").write_text(card(name, info, result, training))
    if name == SHIPPED:
        short = in_short(stored(dynamics.NAME), info.weights_sha256)
        beside = stored(side_by_side.NAME)
        others = [side_by_side.tables(beside)] if beside else []
        write_readme(name, "\n\n".join(filter(None, [tables(result), *short, *others])))
    typer.echo(f"wrote mlpot/zoo/{name}.md" + " and the table in README.md" * (name == SHIPPED))


def write_readme(name: str, text: str) -> None:
    readme = ROOT / "README.md"
    start, end = f"<!-- errors of {name}: generated -->", "<!-- end -->"
    if not fill(readme, start, text, end):
        sys.exit(f"README.md has no lines {start!r} and {end!r}")


if __name__ == "__main__":
    app()
