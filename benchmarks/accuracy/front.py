"""Accuracy against time: which depth, width, cutoff and heads are worth their cost.

    python benchmarks/accuracy/front.py run --minutes 6      # one run after the other; resumable
    python benchmarks/accuracy/front.py show

Every model is trained from nothing for the same wall time on the same molecules, with a schedule
that ends there; errors are those of the molecules held out for validation.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from model_card import DATA, ROOT, TRAINED_ON  # this folder is where the script runs

from mlpot.data.formats import read_all
from mlpot.data.record import Record
from mlpot.data.splits import split_held_out
from mlpot.models.checkpoint import load_potential
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.finetune import FinetuneConfig, FinetuneLoop, finetune

HELD_OUT = ROOT / "mlpot" / "zoo" / "recipes" / "held_out.json"
RESULTS = Path(__file__).parent / "results" / "front.json"
MODELS: dict[str, dict[str, Any]] = {
    "3x64, 8 heads, 5 Å": {"layers": 3, "channels": 64, "heads": 8},
    "3x64, 5 Å": {"layers": 3, "channels": 64, "heads": 64},
    "4x64, 5 Å": {"layers": 4, "channels": 64, "heads": 64},
    "3x96, 5 Å": {"layers": 3, "channels": 96, "heads": 96},
    "4x64, 4 Å": {"layers": 4, "channels": 64, "heads": 64, "cutoff": 4.0},
    "4x96, 4 Å": {"layers": 4, "channels": 96, "heads": 96, "cutoff": 4.0},
}
app = typer.Typer(add_completion=False)


def frames(train: int, held: int) -> list[Record]:
    """So many frames to train on, at random, and of each held-out part."""
    records = read_all([DATA / f for f in TRAINED_ON])
    split = split_held_out(records, HELD_OUT)
    rng = np.random.default_rng(0)
    parts = ((split.train, train), (split.validation, held), (split.test, held))
    return [records[i] for part, count in parts for i in rng.permutation(part)[:count]]


def recipe(name: str, steps: int, threads: int) -> FinetuneConfig:
    return FinetuneConfig(
        name=name,
        held_out=str(HELD_OUT),
        level="AIMNet2 (wB97M-D3(BJ)/def2-TZVPP teacher), four-member ensemble mean",
        model=ViSNetConfig(**MODELS[name]),
        loop=FinetuneLoop(
            steps=steps,
            batch_atoms=384,
            learning_rate=2e-3,
            warmup=min(200, steps // 5),
            ema=0.995,
            validate_every=steps,
            threads=threads,
            compile="yes",
        ),
    )


def trained(
    name: str, records: list[Record], held: int, minutes: float, threads: int
) -> dict[str, Any]:
    """One model after so many minutes of training."""
    out = ROOT / ".state" / "front" / "".join(c if c.isalnum() else "_" for c in name)
    few = [*records[:1000], *records[-2 * held :: 50]]
    seconds = []
    for steps in (10, 10, 110):  # the first compiles
        shutil.rmtree(out, ignore_errors=True)
        begin = time.perf_counter()
        finetune(few, recipe(name, steps, threads), out, progress=False)
        seconds.append(time.perf_counter() - begin)
    steps = max(200, round(60 * minutes / ((seconds[2] - seconds[1]) / 100)))
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    finetune(records, recipe(name, steps, threads), out, progress=False)
    model, info = load_potential(out / "model.safetensors")
    return {
        "model": MODELS[name],
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "minutes": (time.perf_counter() - begin) / 60,
        "meV": {k: 1e3 * v for k, v in info.provenance["validation"].items() if k != "loss"},
    }


@app.command()
def run(minutes: float = 6.0, train: int = 60_000, held: int = 1500, threads: int = 2) -> None:
    """Train what is not in the results yet."""
    done = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    records = frames(train, held)
    for name in MODELS:
        if name in done:
            continue
        torch.manual_seed(0)
        done[name] = trained(name, records, held, minutes, threads)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n")
        print(name, done[name]["meV"], flush=True)


@app.command()
def show() -> None:
    """Print the table."""
    for name, row in json.loads(RESULTS.read_text()).items():
        e, f = row["meV"]["energy_mae"], row["meV"]["force_mae"]
        print(f"{name:24} {row['parameters']:8,} {row['steps']:6,} steps  E {e:.2f}  F {f:.1f}")


if __name__ == "__main__":
    app()
