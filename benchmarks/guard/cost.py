"""What the guard costs: checks, and looks at lengths, against a step of the compiled engine.

    python -m benchmarks.guard.cost       # writes results/cost.json and cost.md

Single calls, their medians; and whole simulations in turns with and without the guard: of one
molecule in OpenMM, where a reporter also makes the host fetch positions every few steps, and of
replicas, whose batch is graded in one call. Models need statistics; without them they are fitted to
a few frames, which costs the same.
"""

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

from benchmarks.accuracy.experiment import commit, write_results
from benchmarks.guard.simulated import BATCH_ATOMS
from mlpot.data.record import Record
from mlpot.deploy.grader import FeatureGrader
from mlpot.deploy.load import load
from mlpot.md.guard import INTERVAL, LOOK, Guard, GuardReporter, ReplicaGuard
from mlpot.md.replicas import Replicas
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


def in_replicas(
    path: Path, structure: Structure, count: int, pairs: int = 5, length: float = 2.0
) -> float:
    """Percent that the guard adds to a simulation of replicas; median of pairs of runs of
    ``length`` seconds."""
    copies = [structure.numbers] * count, [structure.positions] * count
    replicas = Replicas(load(path, engine="compiled"), *copies)
    replicas.minimize()
    watch, added = ReplicaGuard(Guard(path, report=lambda line: None)), []

    def seconds(observers: list[Any], steps: int) -> float:
        replicas.observers[:] = observers
        start = time.perf_counter()
        replicas.step(steps)
        return time.perf_counter() - start

    seconds([watch], INTERVAL)  # warms up
    chunks = round(length / seconds([], INTERVAL))
    steps = max(2, chunks) * INTERVAL  # whole intervals: every run has its share of checks
    for _ in range(pairs):
        without = seconds([], steps)
        added.append(100 * (seconds([watch], steps) / without - 1))
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
    count = max(2, BATCH_ATOMS // len(numbers))
    return {
        "atoms": len(numbers),
        "step_ms": step,
        "check_ms": check,
        "look_ms": look,
        "interval": INTERVAL,
        "look_every": LOOK,
        "cost_percent": 100 * ((check - look) / INTERVAL + look / LOOK) / step,
        "openmm_percent": in_openmm(path, structure, step),
        "replicas": count,
        "replicas_percent": in_replicas(path, structure, count),
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
        info = load_potential(path)[1]
    told = {
        "model": {"name": info.name, "sha256": info.sha256},
        "commit": commit(),
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "rows": rows,
    }
    write_results(RESULTS / "cost.json", told)
    (RESULTS / "cost.md").write_text(page(told), encoding="utf-8")


def page(told: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "| molecule | atoms | step, ms | check, ms | look, ms | guard, % of a step "
        "| OpenMM with the guard, % | replicas with the guard, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in told["rows"].items():
        times = " | ".join(f"{row[f'{k}_ms']:.2f}" for k in ("step", "check", "look"))
        percent = f"{row['cost_percent']:.1f} | {row['openmm_percent']:+.1f}"
        many = f"{row['replicas']} copies: {row['replicas_percent']:+.1f}"
        lines.append(f"| {name} | {row['atoms']} | {times} | {percent} | {many} |")
    weights = f"{told['model']['name']} {told['model']['sha256'][:8]}"
    lines += ["", f"Weights (SHA-256): {weights}. Commit {told['commit']}; {told['machine']}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
