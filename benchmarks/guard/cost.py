"""What the guard costs: checks, and looks at lengths, against a step of the compiled engine.

    python benchmarks/guard/cost.py       # writes results/cost.json and cost.md

Single calls, their medians; and whole simulations in OpenMM, in turns with and without the guard:
there, a reporter also makes the host fetch positions every few steps. Models need statistics;
without them they are fitted to a few frames, which costs the same.
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
from mlpot.md.guard import INTERVAL, LOOK, Guard, GuardReporter
from mlpot.md.structure import Structure, read_structure
from mlpot.models.checkpoint import load_potential, save
from mlpot.train.guard import fit_guard
from mlpot.zoo import resolve

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"


def peptide(residues: int) -> str:
    """SMILES of Ac-(Ala)n-NHMe, 12 + 10 n atoms."""
    return "CC(=O)" + "N[C@@H](C)C(=O)" * residues + "NC"


SYSTEMS = {
    "ethanol": "CCO",
    "Ac-Ala-NHMe": peptide(1),
    "Ac-Ala5-NHMe": peptide(5),
    "Ac-Ala13-NHMe": peptide(13),
}


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


def in_openmm(path: Path, structure: Structure, step_ms: float, pairs: int = 5) -> float:
    """Percent that the guard adds to a simulation in OpenMM; median of pairs of runs."""
    import openmm
    from openmm import app, unit
    from openmmml import MLPotential

    topology = structure.topology
    system = MLPotential("mlpot", model=str(path)).createSystem(topology, engine="compiled")
    steps = max(4 * INTERVAL, round(2000 / step_ms / INTERVAL) * INTERVAL)
    where = openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"}
    integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005)
    simulation = app.Simulation(topology, system, integrator, *where)
    simulation.context.setPositions(structure.positions * unit.angstrom)
    simulation.minimizeEnergy(maxIterations=50)
    reporter, added = GuardReporter(Guard(path, report=lambda line: None)), []
    simulation.reporters.append(reporter)
    simulation.step(2 * INTERVAL)
    for _ in range(pairs):
        taken = []
        for reporters in ([], [reporter]):
            simulation.reporters[:] = reporters
            start = time.perf_counter()
            simulation.step(steps)
            taken.append(time.perf_counter() - start)
        added.append(100 * (taken[1] / taken[0] - 1))
    return float(np.median(added))


def measured(path: Path, smiles: str) -> dict[str, Any]:
    """Milliseconds and percent, of one molecule."""
    structure, grader = read_structure(smiles), FeatureGrader(path)
    numbers, positions = structure.numbers, structure.positions
    moves = np.random.default_rng(0).standard_normal((16, *positions.shape))
    geometries = list(positions + 0.02 * moves)
    step = milliseconds(load(path, engine="compiled").bind(numbers), geometries)
    bound = grader.bind(numbers)
    check = milliseconds(bound, geometries)
    look = milliseconds(bound.length_grades, geometries)
    return {
        "atoms": len(numbers),
        "step_ms": step,
        "check_ms": check,
        "look_ms": look,
        "interval": INTERVAL,
        "look_every": LOOK,
        "cost_percent": 100 * ((check - look) / INTERVAL + look / LOOK) / step,
        "openmm_percent": in_openmm(path, structure, step),
    }


def main(model: str = "pretrained-visnet") -> None:
    """Measure, and write results/cost.json and cost.md."""
    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = with_statistics(model, Path(folder))
        for name, smiles in SYSTEMS.items():
            rows[name] = measured(path, smiles)
            typer.echo(f"{name}: {rows[name]}")
    told = {"machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}", "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cost.json").write_text(json.dumps(told, indent=2) + "\n")
    lines = [
        "| molecule | atoms | step, ms | check, ms | look, ms | guard, % of a step "
        "| OpenMM with the guard, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        times = " | ".join(f"{row[f'{k}_ms']:.2f}" for k in ("step", "check", "look"))
        percent = f"{row['cost_percent']:.1f} | +{row['openmm_percent']:.1f}"
        lines.append(f"| {name} | {row['atoms']} | {times} | {percent} |")
    (RESULTS / "cost.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
