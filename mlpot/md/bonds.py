"""Which atoms are bonded, and what became of that when a geometry was minimised."""

from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray
from scipy.spatial import cKDTree

#: in sums of covalent radii; closer atoms are bonded
BONDED = 1.25

#: Å; a bond that is so much longer than it was is open (the departure of MDsim's criterion)
OPENED = 0.5


class Opened(NamedTuple):
    """A bond that opened in minimising."""

    atoms: tuple[int, int]
    given: float  # Å
    now: float  # Å
    name: str  # "S 5 - Cl 8"

    def __str__(self) -> str:
        return f"{self.name}, {self.given:.2f} Å as given and {self.now:.2f} Å after minimising"


def find_bonds(numbers: NDArray[np.int64], positions: NDArray[np.floating]) -> NDArray[np.int64]:
    """[B, 2] pairs (i < j, in order) closer than 1.25 sums of their covalent radii, positions
    [N, 3] Å. A box is not looked across."""
    if not len(numbers):
        return np.empty((0, 2), dtype=np.int64)
    radii = covalent_radii[numbers]
    tree = cKDTree(positions)
    near = tree.query_pairs(2 * BONDED * float(radii.max()), output_type="ndarray")
    pairs = near[np.lexsort((near[:, 1], near[:, 0]))].astype(np.int64)
    i, j = pairs.T
    distance = np.linalg.norm(positions[i] - positions[j], axis=1)
    return np.asarray(pairs[distance < BONDED * (radii[i] + radii[j])])


def opened(
    numbers: NDArray[np.int64], given: NDArray[np.float64], now: NDArray[np.float64]
) -> Opened | None:
    """The bond of ``given`` that is furthest open in ``now`` (both [N, 3] Å), if one is."""
    bonds = find_bonds(numbers, given)
    if not len(bonds):
        return None
    before, after = (np.linalg.norm(x[bonds[:, 0]] - x[bonds[:, 1]], axis=1) for x in (given, now))
    most = int((after - before).argmax())
    if not after[most] - before[most] > OPENED:
        return None
    i, j = bonds[most].tolist()
    name = f"{chemical_symbols[numbers[i]]} {i} - {chemical_symbols[numbers[j]]} {j}"
    return Opened((i, j), float(before[most]), float(after[most]), name)
