"""Noise that a molecule makes by itself: rotations about its single bonds.

Between conformers a molecule turns about single bonds by tens of degrees, while it stretches and
bends little; noise of coordinates alone does the opposite. Both together, of which a network is to
remove that of the coordinates only, is fractional denoising (Feng et al., arXiv 2307.10683).
N atoms.
"""

from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii
from ase.data.vdw_alvarez import vdw_radii
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

#: in sums of covalent radii; closer atoms are bonded, as in `mlpot.md.bonds`
BONDED = 1.25

#: in sums of van der Waals radii: no rotation brings atoms nearer (H-H 1.7 Å, C-C 2.5 Å). What is
#: to be gone back to must not be a geometry that its own forces would blow apart
CLASH = 0.7

#: two bonds and no double one, where there are two neighbours: O, S, Se
_BENT = (8, 16, 34)

Reals = NDArray[np.floating]


class Rotor(NamedTuple):
    """A single bond, and the atoms on its smaller side, which turn."""

    axis: tuple[int, int]
    turned: NDArray[np.int64]


def rotors(numbers: NDArray[np.int64], positions: Reals) -> list[Rotor]:
    """Single bonds outside rings, between atoms that both have other bonds.

    Bond orders are not known: a bond is single if one of its atoms has four neighbours, or is an
    oxygen or sulphur with two. That leaves out biaryls, amides' C-N and conjugated chains, but not
    the C-O of esters and acids.

    Args:
        numbers: [N] atomic numbers.
        positions: [N, 3] Å, a molecule (or several) in one piece.
    """
    bonded = _bonded(numbers, positions)
    degree = bonded.sum(axis=1)
    single = (degree == 4) | (np.isin(numbers, _BENT) & (degree == 2))
    candidates = np.triu(bonded & (single[:, None] | single) & (degree[:, None] > 1) & (degree > 1))
    neighbours = [np.flatnonzero(row).tolist() for row in bonded]
    found = []
    for i, j in np.argwhere(candidates).tolist():
        sides = [_side(neighbours, *ends) for ends in ((i, j), (j, i))]
        if all(sides):  # else the bond is in a ring
            found.append(Rotor((i, j), np.array(min(map(sorted, sides), key=len))))
    return found


def twist(
    numbers: NDArray[np.int64], positions: Reals, degrees: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Positions [N, 3] Å after a rotation about every single bond.

    A rotation that would bring atoms nearer than `CLASH`, and nearer than they were, is left out.

    Args:
        numbers: [N] atomic numbers.
        positions: [N, 3] Å, as in `rotors`.
        degrees: standard deviation of the angles.
        rng: of the angles.
    """
    twisted, radii = np.array(positions, dtype=np.float64), vdw_radii[numbers]
    limit = CLASH * (radii[:, None] + radii)
    for (i, j), turned in rotors(numbers, positions):
        axis = twisted[j] - twisted[i]
        angle = np.radians(rng.normal(scale=degrees)) / np.linalg.norm(axis)
        moved = twisted.copy()
        moved[turned] -= twisted[i]
        moved[turned] = Rotation.from_rotvec(angle * axis).apply(moved[turned]) + twisted[i]
        rest = np.delete(np.arange(len(numbers)), turned)
        before, after = (cdist(x[turned], x[rest]) for x in (twisted, moved))
        # lengths and angles stay, but for the last digit
        if (after > np.minimum(before, limit[np.ix_(turned, rest)]) - 1e-6).all():
            twisted = moved
    return twisted


def _side(neighbours: list[list[int]], end: int, other: int) -> set[int]:
    """Atoms on one end of a bond; empty if there is another way to its other end."""
    side, todo = {end}, [n for n in neighbours[end] if n != other]
    while todo:
        atom = todo.pop()
        if atom == other:
            return set()
        side.add(atom)
        todo += [n for n in neighbours[atom] if n not in side]
    return side


def _bonded(numbers: NDArray[np.int64], positions: Reals) -> NDArray[np.bool_]:
    """[N, N], which atoms are bonded."""
    radii = covalent_radii[numbers]
    near = cdist(positions, positions) < BONDED * (radii[:, None] + radii)
    np.fill_diagonal(near, False)
    return near
