"""Replicas of a molecule under the guard: which broke, which were flagged, and when."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.guard.parts import Known, Part
from mlpot.active.sanity import Sanity
from mlpot.analysis.criteria import BOND_DEPARTURE, bond_lengths, find_bonds
from mlpot.deploy.engines import DeployedModel
from mlpot.deploy.grader import FeatureGrader
from mlpot.md.guard import Guard, ReplicaGuard
from mlpot.md.replicas import Replicas
from mlpot.md.settings import MINIMIZE

#: atoms of a batch; more cost more each, out of the cache
BATCH_ATOMS = 200

#: steps between looks at bonds
EVERY = 5

#: of the first run of a molecule; others count up
SEED = 1000

Json = dict[str, Any]


class Bonds:
    """Observer that takes out replicas in which a bond has broken.

    Attributes:
        broken: replica -> step.
    """

    def __init__(self, bonds: NDArray[np.int64], usual: NDArray[np.float64]):
        self.interval = EVERY
        self.bonds, self.usual = bonds, usual
        self.broken: dict[int, int] = {}

    def __call__(self, replicas: Replicas) -> None:
        positions, living = replicas.positions, replicas.alive.nonzero()[0].tolist()
        gone = [r for r in living if not self.departure(positions[r]) <= BOND_DEPARTURE]
        self.broken |= dict.fromkeys(gone, replicas.steps)
        if gone:
            replicas.remove(gone)

    def departure(self, positions: NDArray[np.float64]) -> float:
        """Of the bond that is furthest off, Å."""
        return float(np.abs(bond_lengths(positions[None], self.bonds)[0] - self.usual).max())


class Grades:
    """Observer that keeps the grades of every check, so that other rules can be tried on them; and
    every few steps those of pair lengths alone."""

    def __init__(self, guard: ReplicaGuard, grader: FeatureGrader):
        self.interval, self._guard, self._grader = EVERY, guard, grader
        self.rows: list[NDArray] = []
        self.lengths: list[NDArray] = []

    def __call__(self, replicas: Replicas) -> None:
        alive = replicas.alive.nonzero()[0].tolist()
        row = np.full((len(replicas), replicas.systems.sizes[0]), np.nan)
        if alive:
            row[alive] = self._grader.length_grades(replicas.graph()).reshape(len(alive), -1)
        self.lengths.append(row)
        if replicas.steps % self._guard.guard.interval:
            return
        row = np.full_like(row, np.nan)
        for r in alive:
            row[r] = self._guard.latest[r]
        self.rows.append(row)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        grades = np.stack(self.rows) if self.rows else np.empty(0)
        np.savez(path, grades=grades, lengths=np.stack(self.lengths))


class Run(NamedTuple):
    """What came of one replica; times in fs."""

    flag: float = math.inf
    broke: float = math.inf
    for_length: bool = False  # whether its first flag was for a length


def simulate(
    model: DeployedModel,
    grader: FeatureGrader,
    known: Known,
    kelvin: float,
    part: Part,
    count: int,
    grades: Path | None = None,
) -> Json:
    """A row: so many runs of one molecule at one temperature, in batches.

    Args:
        grades: beginning of the names of files for all grades.
    """
    start = _relaxed(model, known)
    if known.bonds is None or known.lengths is None:
        bonds = steady_bonds(known.molecule.numbers, start)
        usual = bond_lengths(start[None], bonds)[0]
    else:
        bonds, usual = known.bonds, known.lengths
    found, largest = [], 0.0
    for first, size in _batches(count, len(known.molecule.numbers)):
        guard = Guard(grader, "warn", report=lambda line: None)
        replicas = Replicas(
            model,
            [known.molecule.numbers] * size,
            [start] * size,
            temperatures=kelvin,
            timestep=part.timestep,
            friction=part.friction,
            seeds=SEED + first,
        )
        watch, broken = ReplicaGuard(guard), Bonds(bonds, usual)
        kept = None if grades is None else Grades(watch, grader)
        # bonds last: what breaks in the step of a look is looked at before it is taken out
        replicas.observers += [watch, broken] if kept is None else [watch, kept, broken]
        watch(replicas)  # at the start; what relaxing broke is `mlpot.analysis`'s to tell
        replicas.step(part.steps)
        found += _runs(guard, broken, replicas)
        largest = max(largest, guard.largest[0])
        if kept is not None and grades is not None:
            kept.save(grades.with_name(f"{grades.name}-{first}.npz"))
    return {"ps": part.ps, **counted(found), "largest_grade": min(largest, 1e9)}


def counted(runs: list[Run]) -> Json:
    """Runs that broke and runs that were whole; flags count if they are from an earlier step."""
    broke = [r for r in runs if math.isfinite(r.broke)]
    early = [r for r in broke if r.flag < r.broke]
    return {
        "runs": len(runs),
        "broken": len(broke),
        "flagged_before_break": len(early),
        "lead_fs": sorted(r.broke - r.flag for r in early),
        "missed_fs": sorted(r.broke for r in broke if r.flag >= r.broke),
        "flagged_but_whole": sum(math.isfinite(r.flag) for r in runs if r not in broke),
        "first_for_its_lengths": sum(r.for_length for r in runs),
    }


def steady_bonds(numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bonds [B, 2] less those of hydrogens in hydrogen bonds, which may change sides: the enol of
    acetylacetone does at 300 K."""
    bonds = find_bonds(numbers, positions)
    far = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    acceptor = np.isin(numbers, (7, 8))

    def shared(hydrogen: int, other: int) -> bool:
        near = acceptor & (far[hydrogen] < 2.0) & (np.arange(len(numbers)) != other)
        return bool(numbers[hydrogen] == 1 and near.any())

    return np.array([b for b in bonds if not (shared(*b) or shared(*b[::-1]))], dtype=np.int64)


def _batches(count: int, atoms: int) -> Iterator[tuple[int, int]]:
    """(first run, runs) of each batch."""
    most = max(1, BATCH_ATOMS // atoms)
    for first in range(0, count, most):
        yield first, min(most, count - first)


def _relaxed(model: DeployedModel, known: Known) -> NDArray[np.float64]:
    """By the model; or as given, where the model's minimum is no molecule."""
    numbers, positions = known.molecule.numbers, known.molecule.positions
    one = Replicas(model, [numbers], [positions])
    one.minimize(MINIMIZE)
    relaxed = one.positions[0]
    return positions if Sanity(numbers, positions).problem(relaxed) else relaxed


def _runs(guard: Guard, bonds: Bonds, replicas: Replicas) -> list[Run]:
    broken = {r: bonds.broken.get(r, step) for r, step in replicas.lost.items()}
    first: dict[int, Any] = {}
    for flag in guard.flags:
        first.setdefault(int(flag.system or 0), flag)
    fs = replicas.timestep
    return [
        Run(
            fs * first[r].step if r in first else math.inf,
            fs * broken[r] if r in broken else math.inf,
            r in first and bool(first[r].reason),
        )
        for r in range(len(replicas))
    ]
