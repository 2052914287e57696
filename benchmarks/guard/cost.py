"""What the guard costs: checks, and looks at lengths, against a step of the compiled engine.

    python benchmarks/guard/cost.py       # writes results/cost.json

Models need statistics; without them they are fitted to a few frames, which costs the same.
"""

import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from ase.io import read as read_atoms

from mlpot.data.record import Record
from mlpot.deploy.grader import FeatureGrader
from mlpot.deploy.load import load
from mlpot.md.guard import INTERVAL, LOOK
from mlpot.models.checkpoint import load_potential, save
from mlpot.train.guard import fit_guard
from mlpot.zoo import resolve

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = {
    "aspirin, 21 atoms": ("examples/aspirin_60_frames.xyz", 1),
    "5 aspirins in a row, 105 atoms": ("examples/aspirin_60_frames.xyz", 5),
}


def geometry(file: str, copies: int) -> Any:
    atoms = read_atoms(ROOT / file, 0)
    whole = atoms.copy()
    for i in range(1, copies):
        other = atoms.copy()
        other.positions[:, 2] += 4.5 * i
        whole += other
    whole.pbc = False
    return whole


def milliseconds(call: Callable[[Any], Any], geometries: list, seconds: float = 3.0) -> float:
    """Median of single calls."""
    for x in geometries:
        call(x)
    taken, began = [], time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call(geometries[len(taken) % len(geometries)])
        taken.append(time.perf_counter() - start)
    return 1e3 * float(np.median(taken))


def with_statistics(model: str, folder: Path) -> Path:
    potential, info = load_potential(resolve(model))
    if info.extrapolation is not None:
        return resolve(model)
    rng, records = np.random.default_rng(0), []
    frames = read_atoms(ROOT / "examples" / "aspirin_60_frames.xyz", ":")
    for atoms in frames:
        forces = rng.standard_normal(atoms.positions.shape)
        numbers = atoms.numbers.astype(np.int64)
        records.append(Record(numbers=numbers, positions=atoms.positions, forces=forces))
    fitted = fit_guard(potential, records[:50], records[50:])
    save(potential, info, folder / "model.safetensors", fitted)
    return folder / "model.safetensors"


def main(model: str = "pretrained-visnet") -> None:
    """Measure, and write results/cost.json."""
    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = with_statistics(model, Path(folder))
        grader = FeatureGrader(path)
        compiled = load(model, engine="compiled")
        for name, (file, copies) in SYSTEMS.items():
            atoms = geometry(file, copies)
            rng = np.random.default_rng(0)
            moves = rng.standard_normal((16, *atoms.positions.shape))
            geometries = list(atoms.positions + 0.02 * moves)
            step = milliseconds(compiled.bind(atoms.numbers), geometries)
            bound = grader.bind(atoms.numbers)
            check = milliseconds(bound, geometries)
            look = milliseconds(bound.length_grades, geometries)
            rows[name] = {
                "step_ms": step,
                "check_ms": check,
                "look_ms": look,
                "interval": INTERVAL,
                "look_every": LOOK,
                "cost_percent": 100 * (check / INTERVAL + look / LOOK) / step,
            }
            typer.echo(f"{name}: {rows[name]}")
    told = {"machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}", "rows": rows}
    out = Path(__file__).parent / "results" / "cost.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
