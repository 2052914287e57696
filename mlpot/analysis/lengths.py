"""What bonds are compared with: mean lengths, and which bonds are judged at all."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlpot.analysis.criteria import (
    BOND_DEPARTURE,
    Pairs,
    Reals,
    bond_lengths,
    bond_name,
    first_broken,
)

#: frames that a mean needs
ENOUGH = 10


class Lengths(NamedTuple):
    """Of the bonds of one molecule.

    Attributes:
        bonds: [B, 2] atoms of those that are judged.
        mean: [B] Å, what they are compared with.
        mobile: names of bonds that are not judged.
        final: False where, for want of frames, it is the geometry as it was given. (A mean differs
            from it by hundredths of an Å; but two machines must judge by the same.)
    """

    bonds: Pairs
    mean: NDArray[np.float64]
    mobile: list[str]
    final: bool


def of_reference(numbers: NDArray[np.int64], bonds: Pairs, frames: Reals) -> Lengths:
    """Means over the frames [F, N, 3] Å of a simulation by another method.

    A proton that is handed over there has to move in a good model's simulation too, and the
    0.5 Å of MDsim would call that broken. So a bond that is off by more in the reference itself
    is not judged.
    """
    lengths = bond_lengths(frames, bonds)
    mean = lengths.mean(axis=0)
    still = np.abs(lengths - mean).max(axis=0) <= BOND_DEPARTURE
    mobile = [bond_name(numbers, bond) for bond in bonds[~still]]
    return Lengths(bonds[still], mean[still], mobile, True)


def of_own(bonds: Pairs, runs: Sequence[Reals], given: NDArray[np.float64]) -> Lengths:
    """Means over a model's own runs [F, N, 3] Å at 300 K while they are whole.

    Args:
        bonds: [B, 2].
        runs: may be none, or too short.
        given: [B] Å, of the geometry as it was given, which is used then.
    """
    together = [np.empty((0, len(bonds)))]
    for positions in runs:
        lengths = bond_lengths(positions, bonds)
        together.append(lengths[: first_broken(lengths, given)])
    whole = np.concatenate(together)
    enough = len(whole) >= ENOUGH
    return Lengths(bonds, whole.mean(axis=0) if enough else given, [], enough)
