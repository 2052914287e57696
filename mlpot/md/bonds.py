"""Which atoms are bonded, and what became of that when a geometry was minimised."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

#: in sums of covalent radii; closer atoms are bonded
BONDED = 1.25

#: Å; a bond that is so much longer than it was is open (the departure of MDsim's criterion)
OPENED = 0.5

#: of so many bonds it is told that they opened
TOLD = 3

#: sums of covalent radii; a bond that parts two molecules with paired electrons is shorter (double,
#: N-O of an amine oxide), or there are several, as in cyclobutane
_LOOSE, _LOOSE_OF_SEVERAL = 1.04, 1.15

#: the most neighbours of an atom, more of which are contacts; of elements that are not here any
_VALENCE = {1: 1, 6: 4, 7: 4, 8: 2, 9: 1, 17: 1, 35: 1, 53: 1}


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
    [N, 3] Å. A box is not looked across, and what is not finite has no bonds."""
    finite = np.flatnonzero(np.isfinite(positions).all(axis=1))
    if not len(finite):
        return np.empty((0, 2), dtype=np.int64)
    tree = cKDTree(positions[finite])
    reach = 2 * BONDED * float(covalent_radii[numbers].max())
    near = finite[tree.query_pairs(reach, output_type="ndarray")].reshape(-1, 2)
    pairs = near[np.lexsort((near[:, 1], near[:, 0]))].astype(np.int64)
    return np.asarray(pairs[_relative(numbers, positions, pairs) < BONDED])


def opened(
    numbers: NDArray[np.int64], given: NDArray[np.float64], now: NDArray[np.float64]
) -> list[Opened]:
    """Bonds of ``given`` that are open in ``now`` (both [N, 3] Å), the furthest first.

    Of an atom with more neighbours than its element has bonds, the nearest ones are its bonds (of
    a hydrogen, a heavy atom before another hydrogen): a contact that minimising mends was none.
    Nor was one that leaves two molecules of paired electrons (even numbers of them, if neutral)
    where no bond of theirs would be so long. Within a molecule, a contact that adds no neighbour
    too many is not told from a bond.
    """
    bonds = _without_contacts(numbers, given, find_bonds(numbers, given))
    bonds = bonds[~_between_molecules(numbers, given, now, bonds)]
    if not len(bonds):
        return []
    before, after = (np.linalg.norm(x[bonds[:, 0]] - x[bonds[:, 1]], axis=1) for x in (given, now))
    found = []
    for most in np.argsort(before - after):
        if after[most] - before[most] > OPENED:  # false for NaN
            i, j = bonds[most].tolist()
            name = f"{chemical_symbols[numbers[i]]} {i} - {chemical_symbols[numbers[j]]} {j}"
            found.append(Opened((i, j), float(before[most]), float(after[most]), name))
    return found


def tell_opened(
    numbers: NDArray[np.int64],
    given: NDArray[np.float64],
    now: NDArray[np.float64],
    report: Callable[[str], object],
) -> None:
    """A sentence for each bond that is `opened`, of the furthest three, with what to do."""
    for bond in opened(numbers, given, now)[:TOLD]:
        report(
            f"minimising opened a bond: {bond}. Check the start geometry; if it is right, label "
            "frames with this bond and fine-tune"
        )


def _relative(
    numbers: NDArray[np.int64], positions: NDArray[np.floating], pairs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[B] lengths in sums of covalent radii."""
    i, j = pairs.T
    distance = np.linalg.norm(positions[i] - positions[j], axis=1)
    return np.asarray(distance / (covalent_radii[numbers[i]] + covalent_radii[numbers[j]]))


def _without_contacts(
    numbers: NDArray[np.int64], positions: NDArray[np.float64], pairs: NDArray[np.int64]
) -> NDArray[np.int64]:
    kept: list[tuple[int, int]] = []
    count = np.zeros(len(numbers), dtype=np.int64)
    between_hydrogens = (numbers[pairs] == 1).all(axis=1)
    # the nearest to what a bond is, not the shortest: a clash is far shorter than any bond
    strange = np.abs(_relative(numbers, positions, pairs) - 1.0)
    for row in np.lexsort((strange, between_hydrogens)):
        i, j = pairs[row].tolist()
        if all(count[k] < _VALENCE.get(int(numbers[k]), len(pairs)) for k in (i, j)):
            count[[i, j]] += 1
            kept.append((i, j))
    return np.array(kept, dtype=np.int64).reshape(-1, 2)


def _between_molecules(
    numbers: NDArray[np.int64],
    given: NDArray[np.float64],
    now: NDArray[np.float64],
    bonds: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """[B] bonds of ``given`` that are contacts of what are two whole molecules ``now``."""
    i, j = find_bonds(numbers, now).T
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(len(numbers), len(numbers)))
    piece = connected_components(graph, directed=False)[1]
    radical = np.bincount(piece, weights=numbers) % 2 == 1
    ends = np.sort(piece[bonds], axis=1)
    apart = (ends[:, 0] != ends[:, 1]) & ~radical[ends].any(axis=1)
    _, which, count = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    shortest = np.where(count[which.reshape(-1)] == 1, _LOOSE, _LOOSE_OF_SEVERAL)
    return np.asarray(apart & (_relative(numbers, given, bonds) > shortest))
