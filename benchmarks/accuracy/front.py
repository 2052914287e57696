"""Accuracy against time: which depth, width, cutoff and order are worth their cost.

    python benchmarks/accuracy/front.py run --minutes 20     # side by side, a core each; resumable
    python benchmarks/accuracy/front.py long '3x64, 4 Å'     # an hour or two, two cores; resumable
    python benchmarks/accuracy/front.py time                 # a step of MD, on a quiet machine
    python benchmarks/accuracy/front.py show

`run` trains every model from nothing for the same wall time on the same molecules, with a schedule
that ends there. That favours small models, so `long` gives one of them the recipes of
pretrained-visnet-small, denoising included. Errors are those of the molecules held out for
validation.
"""

import fcntl
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ase import Atoms
from ase.io import read as read_atoms
from experiment import (  # this folder is where the script runs
    DATA,
    HELD_OUT,
    LEVEL,
    ROOT,
    TRAINED_ON,
    commit,
    machine,
    millis,
    store,
    stored,
    table,
)
from history import LABELLED, SHIPPED_CYCLES, read_stage

from mlpot import MLPotCalculator
from mlpot.data.formats import read_all
from mlpot.data.lengths import pair_name
from mlpot.data.record import Record
from mlpot.data.splits import split_held_out
from mlpot.models.checkpoint import ModelInfo, build, load_potential, save
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.finetune import FinetuneConfig, FinetuneLoop, finetune
from mlpot.train.loop import read_toml
from mlpot.train.pretrain import PretrainConfig, pretrain
from mlpot.zoo import resolve

NAME = "front"
SYSTEMS = ROOT / "benchmarks" / "speed" / "systems"
TIMED = ("aspirin", "peptide")
SHORT = "small"
#: of calls, in turns with the other sizes
ROUNDS = 10
#: calls that are not counted, of every turn
WARM = 5
#: of rows from before the machine was noted
UNTOLD = " (two threads, of an unknown machine)"
#: the size whose time the others' are told in
BASE = "4x64, 4 Å"
RUNS = ROOT / "runs" / "front"
RECIPES = ROOT / "mlpot" / "zoo" / "recipes"
LONG = [RECIPES / f"pretrained-visnet-small-{n}.toml" for n in ("1-denoise", "2-energies")]
MODELS: dict[str, dict[str, Any]] = {
    "4x64, 4 Å": {"layers": 4, "channels": 64, "heads": 64, "cutoff": 4.0},
    "4x96, 4 Å": {"layers": 4, "channels": 96, "heads": 96, "cutoff": 4.0},
    "4x64, 5 Å": {"layers": 4, "channels": 64, "heads": 64, "cutoff": 5.0},
    "4x64, 4 Å, lmax 2": {"layers": 4, "channels": 64, "heads": 64, "cutoff": 4.0, "lmax": 2},
    "6x64, 4 Å": {"layers": 6, "channels": 64, "heads": 64, "cutoff": 4.0},
    "3x64, 4 Å": {"layers": 3, "channels": 64, "heads": 64, "cutoff": 4.0},
    "3x48, 4 Å": {"layers": 3, "channels": 48, "heads": 48, "cutoff": 4.0},
    "3x64, 5 Å": {"layers": 3, "channels": 64, "heads": 64, "cutoff": 5.0},
}
app = typer.Typer(add_completion=False)


def frames(train: int, held: int) -> list[Record]:
    """So many frames to train on, at random, and of each held-out part."""
    records = read_all([DATA / f for f in TRAINED_ON])
    split = split_held_out(records, HELD_OUT)
    rng = np.random.default_rng(0)
    parts = ((split.train, train), (split.validation, held), (split.test, held))
    return [records[i] for part, count in parts for i in rng.permutation(part)[:count]]


def recipe(name: str, steps: int) -> FinetuneConfig:
    return FinetuneConfig(
        name=name,
        held_out=str(HELD_OUT),
        level=LEVEL,
        model=ViSNetConfig(**MODELS[name]),
        floor=0.0,  # as all that is in its results
        loop=FinetuneLoop(
            steps=steps,
            batch_atoms=384,
            optimizer="muon",
            learning_rate=2e-3,
            warmup=min(200, steps // 5),
            ema=0.995,
            validate_every=steps,
            threads=1,
            compile="yes",
        ),
    )


@app.command()
def one(name: str, minutes: float, train: int = 60_000, held: int = 1500) -> None:
    """Train one model for so many minutes of one core."""
    records = frames(train, held)
    out = RUNS / folder(name)
    few = [*records[:1000], *records[-2 * held :: 50]]
    seconds = []
    for steps in (10, 10, 110):  # the first compiles
        shutil.rmtree(out, ignore_errors=True)
        begin = time.perf_counter()
        finetune(few, recipe(name, steps), out, progress=False)
        seconds.append(time.perf_counter() - begin)
    steps = max(200, round(60 * minutes / ((seconds[2] - seconds[1]) / 100)))
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    finetune(records, recipe(name, steps), out, progress=False)
    model, info = load_potential(out / "model.safetensors")
    row = {
        "model": MODELS[name],
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "minutes": (time.perf_counter() - begin) / 60,
        "commit": commit(),
        "machine": machine(),
        "meV": {k: 1e3 * v for k, v in info.provenance["validation"].items() if k != "loss"},
    }
    keep(name, row)
    print(name, row["meV"], flush=True)


@app.command()
def long(
    name: str, steps: Annotated[int | None, typer.Option(help="if not those of the recipe")] = None
) -> None:
    """Train one model with all frames, by the recipes of pretrained-visnet-small."""
    records = read_all([DATA / f for f in TRAINED_ON])
    out = RUNS / f"long-{folder(name)}"
    denoise = read_toml(LONG[0], PretrainConfig)
    denoise = denoise.model_copy(update={"model": ViSNetConfig(**MODELS[name])})
    pretrain(records, denoise, out / "denoise", progress=False)
    start, labelled = out / "denoise" / "model.safetensors", read_toml(LONG[1], FinetuneConfig)
    if steps:
        loop = labelled.loop.model_copy(update={"steps": steps})
        labelled = labelled.model_copy(update={"loop": loop})
    info, _ = finetune(records, labelled, out / "energies", start, progress=False)
    stages = {LABELLED: read_stage(out / "energies")}
    told = {"steps": labelled.loop.steps, "hours": stages[LABELLED]["hours"]}
    told |= {"meV": millis(info.provenance["validation"]), "sha256": info.weights_sha256}
    keep(name, {"long": {**told, "commit": commit(), "machine": machine()}})
    print(name, told, flush=True)


def folder(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def keep(name: str, row: dict[str, Any]) -> None:
    """Add to the results; several processes may do so."""
    RUNS.mkdir(parents=True, exist_ok=True)
    with open(RUNS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = stored(NAME)
        done[name] = {**done.get(name, {}), **row}
        store(NAME, {k: done[k] for k in MODELS if k in done})


@app.command()
def run(minutes: float = 20.0, jobs: int = 0, models: str = "") -> None:
    """Train what is not in the results yet, each on a core of its own; `jobs` at once, all cores
    if 0."""
    wanted = [m.strip() for m in models.split(";")] if models else list(MODELS)
    left = [name for name in wanted if "meV" not in stored(NAME).get(name, {})]

    def process(name: str) -> None:
        subprocess.run([sys.executable, __file__, "one", name, str(minutes)], check=True)

    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        list(pool.map(process, left))


@app.command("time")
def time_step(threads: int = 2, calls: int = 300) -> None:
    """Milliseconds for energy and forces of aspirin and of a 140-atom peptide, compiled.

    All sizes in turns, so that what else the machine does falls on all of them; their weights are
    random, which costs the same.
    """
    torch.set_num_threads(threads)
    seconds: dict[str, dict[str, list[float]]] = {}
    names = list(stored(NAME))
    calculators = {name: MLPotCalculator(untrained(name), engine="compiled") for name in names}
    for turn in range(ROUNDS + 1):  # the first compiles
        for name, calculator in calculators.items():
            for system in TIMED:
                atoms = read_atoms(SYSTEMS / f"{system}.xyz")
                atoms.calc = calculator
                found = list(evaluations(atoms, -(-calls // ROUNDS) if turn else 1))
                if turn:
                    seconds.setdefault(name, {}).setdefault(system, []).extend(found)
    where = {"threads": threads, "machine": machine()}
    for name, of in seconds.items():
        row = {system: statistics.median(found) for system, found in of.items()}
        keep(name, {"ms": row, "timed": where})
        print(name, row, flush=True)


def untrained(name: str) -> Path:
    """A model file of this size, with random weights."""
    torch.manual_seed(0)
    elements = [1, 6, 7, 8]
    pairs = [pair_name(a, b) for a, b in combinations_with_replacement(elements, 2)]
    info = ModelInfo(
        name=name,
        config=ViSNetConfig(**MODELS[name]).model_dump(),
        prior="zbl",
        elements=elements,
        reference_energies=dict.fromkeys(elements, 0.0),
        floors=dict.fromkeys(pairs, 0.7),
    )
    path = RUNS / "untrained" / f"{folder(name)}.safetensors"
    save(build(info), info, path)
    return path


def evaluations(atoms: Atoms, calls: int) -> Iterator[float]:
    """Milliseconds a call, each with positions of its own."""
    rng, start = np.random.default_rng(0), atoms.positions.copy()
    for call in range(calls + WARM):
        atoms.positions = start + rng.normal(scale=0.01, size=start.shape)
        begin = time.perf_counter()
        atoms.get_forces()
        if call >= WARM:
            yield 1e3 * (time.perf_counter() - begin)


def tables(result: dict[str, Any]) -> str:
    """Errors after equal training time, and what a step of MD costs."""
    calls = relative_times(result)
    rows = [
        [
            name,
            f"{row['parameters']:,}",
            f"{row['steps']:,}",
            f"{row['minutes']:.1f}",
            *(f"{row['meV'][k]:.1f}" for k in ("force_mae", "force_rmse")),
            *(f"{row['meV'][k]:.2f}" for k in ("energy_mae", "energy_rmse")),
            *calls[name],
        ]
        for name, row in result.items()
    ]
    minutes = [row["minutes"] for row in result.values()]
    header = ["model", "parameters", "steps", "minutes", "F MAE", "F RMSE", "E MAE", "E RMSE"]
    short = (
        f"Models after {min(minutes):.0f} to {max(minutes):.0f} minutes of training on one core "
        "each, from nothing (meV/Å and meV/atom, molecules held out for validation), and "
        f"the time of a call of energy and forces, {BASE} being 1{timed_on(result)}. "
        "Steps are those that fitted the minutes beside what else ran, which was not the same for "
        "all, so close errors are no order:\n\n"
        f"{table([*header, *TIMED], rows)}"
    )
    return "\n\n".join([short, *trained_for_long(result)])


def relative_times(result: dict[str, Any]) -> dict[str, list[str]]:
    """For each size, its times as multiples of those of `BASE`: milliseconds would be of one day.

    All are timed in turns, so a machine that is slow for a while is slow for all of them.
    """
    base = result.get(BASE, {}).get("ms")
    return {
        name: [f"{row['ms'][k] / base[k]:.2f}" if base and "ms" in row else "-" for k in TIMED]
        for name, row in result.items()
    }


def timed_on(result: dict[str, Any]) -> str:
    """' with 2 threads (AMD EPYC)': all rows are timed together."""
    where = [row["timed"] for row in result.values() if "timed" in row]
    return f" ({where[0]['threads']} threads, {where[0]['machine']})" if where else UNTOLD


def trained_for_long(result: dict[str, Any]) -> list[str]:
    """What came of those that were trained for long, on the validation molecules of today."""
    calls = relative_times(result)
    rows = [
        (name, SHORT, row["long"]["steps"], row["long"]["meV"], calls[name])
        for name, row in result.items()
        if "long" in row
    ]
    for name, cycles in SHIPPED_CYCLES.items():
        stages = stored(f"{name}-training").get("stages", {})
        size = size_of(name, result)
        for since, cycle in first_and_last(cycles):
            errors = stored(f"{name}-cycles").get("commits", {}).get(since)
            labelled = [s for k, s in stages.items() if k.startswith(LABELLED)][:cycle]
            if errors and size:
                steps = sum(s["steps"] for s in labelled)
                own = SHORT if name.endswith(SHORT) else "its own"
                rows.append((f"{size} ({name})", own, steps, errors, calls[size]))
    if not rows:
        return []
    lines = [
        [name, recipes, f"{steps:,}", *(f"{e[k]:.1f}" for k in ("force_mae", "force_rmse")),
         f"{e['energy_mae']:.2f}", *times]
        for name, recipes, steps, e, times in sorted(rows, key=lambda row: -row[3]["force_mae"])
    ]  # fmt: skip
    header = ["model", "recipes", "steps with labels", "F MAE", "F RMSE", "E MAE", *TIMED]
    lead = (
        "A quarter of an hour favours small models, which do more steps in it, so it cannot judge "
        f"the larger ones, nor lmax 2; those that cost more than {BASE} were not trained "
        f"for long. {BASE} was chosen before it was compared with a smaller one equally. "
        "Trained for an hour and more, on all frames, after denoising, by the recipes of "
        "pretrained-visnet-small or of pretrained-visnet, which differ in steps of "
        "denoising and in floors (errors on the validation molecules of today):"
    )
    return [f"{lead}\n\n{table(header, lines)}"]


def first_and_last(cycles: dict[str, int]) -> list[tuple[str, int]]:
    rows = list(cycles.items())
    return [rows[0], rows[-1]] if len(rows) > 1 else rows


def commands(result: dict[str, Any]) -> list[str]:
    """The words after the script's name that do it again."""
    steps = {name: row["long"]["steps"] for name, row in result.items() if "long" in row}
    return ["run", *(f"long '{name}' --steps {n}" for name, n in steps.items()), "time"]


def size_of(name: str, result: dict[str, Any]) -> str:
    """The row of the front that a model of the zoo has the size of; "" if none has."""
    config = load_potential(resolve(name))[1].config
    same = [n for n in result if all(config[k] == v for k, v in MODELS[n].items())]
    return same[0] if same else ""


@app.command()
def show() -> None:
    """Print the table."""
    typer.echo(tables(stored(NAME)))


if __name__ == "__main__":
    app()
