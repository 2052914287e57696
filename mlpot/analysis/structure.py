"""How well the geometries of simulations agree with a reference trajectory.

h(r), the distribution of distances between atoms, and its error are those of MDsim (Fu et al.,
"Forces are not enough", TMLR 2023): the integral of |h(r) - h_reference(r)|, from 0 to 2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mdtraj
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from mlpot.analysis.records import topology_of
from mlpot.units import ANGSTROM_TO_NM, NM_TO_ANGSTROM

#: Å, bins of h(r)
BIN, FARTHEST = 0.05, 30.0

#: bins of a dihedral
SECTORS = 36


class Agreement(NamedTuple):
    """Distances between two distributions, 0 where they are the same."""

    hr_mae: float  # no unit, 0 to 2
    bond_shift: float  # Å, mean over bonds of |difference of mean lengths|
    bond_distance: float  # Å, mean over bonds of the Wasserstein distance of their lengths
    #: 0 to 1, mean over dihedrals of the Jensen-Shannon distance; None without any
    dihedral_distance: float | None


class Distributions(NamedTuple):
    """What a trajectory shows."""

    hr: NDArray[np.float64]  # [bins] 1/Å
    bonds: NDArray[np.float64]  # [F, B] Å
    dihedrals: NDArray[np.float64]  # [F, D] rad


def distributions(
    numbers: NDArray[np.int64],
    bonds: NDArray[np.int64],
    positions: NDArray[np.floating],
) -> Distributions:
    """Of positions [F, N, 3] Å."""
    xyz = np.ascontiguousarray(positions * ANGSTROM_TO_NM, dtype=np.float32)
    trajectory = mdtraj.Trajectory(xyz, topology_of(numbers, bonds))
    pairs = np.stack(np.triu_indices(len(numbers), 1), axis=1)

    def distances(of: NDArray[np.int64]) -> NDArray[np.float64]:
        if not len(of):
            return np.empty((len(xyz), 0))
        found = mdtraj.compute_distances(trajectory, of, periodic=False)
        return found.astype(np.float64) * NM_TO_ANGSTROM

    edges = np.arange(0.0, FARTHEST + BIN, BIN)
    count, _ = np.histogram(distances(pairs), bins=edges)
    quartets = dihedral_quartets(numbers, bonds)
    angles = np.empty((len(xyz), 0))
    if len(quartets):
        angles = mdtraj.compute_dihedrals(trajectory, quartets, periodic=False).astype(np.float64)
        angles = angles.clip(-np.pi, np.pi)  # the float32 next to pi is larger than pi
    return Distributions(count / max(1, count.sum()) / BIN, distances(bonds), angles)


def dihedral_quartets(numbers: NDArray[np.int64], bonds: NDArray[np.int64]) -> NDArray[np.int64]:
    """[D, 4], one dihedral for each bond between atoms that have other neighbours.

    Heavy ends are preferred, then low indices.
    """
    neighbours: dict[int, list[int]] = {i: [] for i in range(len(numbers))}
    for i, j in bonds.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    found = []
    for i, j in bonds.tolist():
        ends = [
            sorted((a for a in neighbours[one] if a != other), key=lambda a: (numbers[a] == 1, a))
            for one, other in ((i, j), (j, i))
        ]
        if ends[0] and ends[1] and ends[0][0] != ends[1][0]:
            found.append((ends[0][0], i, j, ends[1][0]))
    return np.array(found, dtype=np.int64).reshape(-1, 4)


def agreement(mine: Distributions, reference: Distributions) -> Agreement:
    """Errors of one trajectory against another of the same molecule."""
    bins = np.linspace(-np.pi, np.pi, SECTORS + 1)
    columns = range(reference.dihedrals.shape[1])
    apart = [
        jensenshannon(
            np.histogram(mine.dihedrals[:, d], bins)[0],
            np.histogram(reference.dihedrals[:, d], bins)[0],
            base=2,
        )
        for d in columns
    ]
    shift = np.abs(mine.bonds.mean(axis=0) - reference.bonds.mean(axis=0))
    ways = [
        wasserstein_distance(mine.bonds[:, b], reference.bonds[:, b])
        for b in range(reference.bonds.shape[1])
    ]
    return Agreement(
        hr_mae=float(np.abs(mine.hr - reference.hr).sum() * BIN),
        bond_shift=_mean(shift.tolist()),
        bond_distance=_mean(ways),
        dihedral_distance=_mean(apart) if apart else None,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
