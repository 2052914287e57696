"""False stops, and warnings before a run breaks: replicas of one molecule under the guard.

    python benchmarks/guard/runs.py MODEL STRUCTURE --ps 10 --temperatures 300,1500

A run has broken at the first check where a bond of the first frame is 0.5 Å longer or shorter than
there (the definition of MDsim), or where the integrator gave up. A flag in a run that stays whole
and is as hot as the training set is a false stop.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from ase.io import read as read_atoms
from ase.neighborlist import natural_cutoffs, neighbor_list

from mlpot.deploy.load import load
from mlpot.md.guard import Guard, ReplicaGuard
from mlpot.md.replicas import Replicas

#: Å
BROKEN = 0.5


class Bonds:
    """Observer that notes when a bond of the start breaks, and all grades."""

    def __init__(self, atoms: Any, interval: int):
        self.interval = interval
        i, j = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.1))
        self.pairs = i[i < j], j[i < j]
        self.start = self.lengths(atoms.positions)
        self.broken: dict[int, int] = {}

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        return np.linalg.norm(positions[self.pairs[0]] - positions[self.pairs[1]], axis=1)

    def __call__(self, replicas: Replicas) -> None:
        positions = replicas.positions
        for r in replicas.alive.nonzero()[0].tolist():
            change = np.abs(self.lengths(positions[r]) - self.start).max()
            if r not in self.broken and not change < BROKEN:
                self.broken[r] = replicas.steps


class Grades:
    """Observer that keeps the grades of every check, so that other rules can be tried on them."""

    def __init__(self, guard: ReplicaGuard):
        self.interval, self._guard = guard.interval, guard
        self.rows: list[np.ndarray] = []

    def __call__(self, replicas: Replicas) -> None:
        row = np.full((len(replicas), replicas.systems.sizes[0]), np.nan)
        for r, grades in self._guard.latest.items():
            row[r] = grades
        self.rows.append(row)


def simulated(
    model: Path, structure: Path, kelvin: float, ps: float, count: int, timestep: float
) -> dict[str, Any]:
    atoms = read_atoms(structure)
    atoms.pbc = False
    guard = Guard(model, "warn", report=lambda line: None)
    replicas = Replicas(
        load(model),
        [atoms.numbers] * count,
        [atoms.positions] * count,
        temperatures=kelvin,
        timestep=timestep,
        seeds=1000,
    )
    replicas.minimize()
    atoms.positions = replicas.positions[0]
    bonds, watch = Bonds(atoms, 5), ReplicaGuard(guard)
    kept = Grades(watch)
    replicas.observers += [bonds, watch, kept]
    for _ in range(round(1000 * ps / timestep) // 500):
        replicas.step(500)
        if all(r in bonds.broken for r in range(count)) or not replicas.alive.any():
            break
    for r, step in replicas.lost.items():
        bonds.broken.setdefault(r, step)
    first: dict[int, int] = {}
    for flag in guard.flags:
        first.setdefault(int(flag.system or 0), flag.step)
    ahead = [r for r in bonds.broken if first.get(r, 1 << 60) <= bonds.broken[r]]
    return {
        "kelvin": kelvin,
        "runs": count,
        "ps": replicas.steps * timestep / 1000,
        "broken": len(bonds.broken),
        "flagged_before_break": len(ahead),
        "whole": count - len(bonds.broken),
        "flagged_but_whole": len([r for r in first if r not in bonds.broken]),
        "largest_grade": guard.largest[0],
        "breaks": {str(r): [first.get(r), s] for r, s in sorted(bonds.broken.items())},
        "grades": np.stack(kept.rows),
    }


def main(
    model: Path,
    structure: Path,
    ps: float = 10.0,
    temperatures: str = "300,1500",
    replicas: int = 32,
    timestep: float = 0.5,
    out: Path = Path(__file__).parent / "results" / "runs.json",
    grades: Path | None = None,
) -> None:
    """Simulate at every temperature and write what happened; ``grades``: npz of all of them."""
    torch.set_num_threads(1)
    rows, kept = [], {}
    for kelvin in (float(t) for t in temperatures.split(",")):
        row = simulated(model, structure, kelvin, ps, replicas, timestep)
        kept[f"{kelvin:g}"] = row.pop("grades")
        rows.append(row)
        typer.echo(json.dumps({k: v for k, v in row.items() if k != "breaks"}))
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"structure": structure.name, "rows": rows}, indent=2) + "\n")
    if grades is not None:
        np.savez(grades, **kept)


if __name__ == "__main__":
    typer.run(main)
