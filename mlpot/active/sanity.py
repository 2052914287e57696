"""Is this still the molecule, bent and stretched, or debris of a potential that broke?

Debris must not be labelled: a quantum-chemistry program fails on it, or answers with energies and
forces that pull the fit away from everything that matters. Reactions are no debris: an atom may
change its partner, as long as nothing overlaps and nothing has left.
"""

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from mlpot.md.bonds import BONDED

#: closer atoms overlap (C-H at 0.64 Å, C-C at 0.91 Å); at 1000 K bonds go down to 0.8
OVERLAP = 0.6

#: further atoms do not hold each other (C-H at 1.9 Å, C-C at 2.7 Å); at 1000 K bonds reach 1.25
APART = 1.8


class Sanity:
    """The rule for one system: no overlaps, and every molecule of the start in one piece.

    Args:
        numbers: [N] atomic numbers.
        positions: [N, 3] Å, whole molecules.
    """

    def __init__(self, numbers: NDArray[np.int64], positions: NDArray[np.float64]):
        radii = covalent_radii[numbers]
        self._numbers = numbers
        self._bond = radii[:, None] + radii[None]  # [N, N] Å
        self._molecule = _pieces(_distances(positions) < BONDED * self._bond)

    def problem(self, positions: NDArray[np.float64]) -> str:
        """What is wrong with positions [N, 3] Å, or nothing."""
        if not np.isfinite(positions).all():
            return "a coordinate is not finite"
        relative = _distances(positions) / self._bond
        np.fill_diagonal(relative, np.inf)
        i, j = np.unravel_index(int(relative.argmin()), relative.shape)
        if relative[i, j] < OVERLAP:
            return f"{self._name(i)} and {self._name(j)} overlap"
        piece = _pieces(relative < APART)
        for molecule in np.unique(self._molecule):
            members = np.flatnonzero(self._molecule == molecule)
            found, sizes = np.unique(piece[members], return_counts=True)
            if len(found) > 1:
                lost = members[piece[members] == found[sizes.argmin()]]
                return f"{', '.join(self._name(a) for a in lost[:3])} flew off"
        return ""

    def _name(self, atom: int | np.integer) -> str:
        return f"{chemical_symbols[self._numbers[atom]]}{int(atom)}"


def _distances(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(positions[:, None] - positions[None], axis=2)


def _pieces(near: NDArray[np.bool_]) -> NDArray[np.int32]:
    """[N], which connected piece an atom belongs to."""
    return connected_components(near, directed=False)[1]
