"""Neighbour lists: vesin for use, an all-pairs twin in plain numpy for tests.

Both give every directed pair (j, i) with |r_j + shift - r_i| < cutoff, images included, so
boxes smaller than twice the cutoff are handled.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from ase.geometry import complete_cell
from numpy.typing import ArrayLike, NDArray
from vesin import NeighborList

from mlpot.errors import InputError, UnsupportedSystemError
from mlpot.graph import Graph

#: Å; atoms closer than this are one atom written twice, not chemistry
OVERLAP = 0.3

#: Å; how far a pair may lie beyond the cutoff before a list is rebuilt (half per atom)
SKIN = 1.0

Pairs = tuple[NDArray[np.int64], NDArray[np.float64]]


class NeighborFinder:
    """Neighbours of one system in motion; rebuilt only when an atom moved more than skin / 2.

    Args:
        cutoff: Å.
        skin: Å; 0 rebuilds at every call, which is right for unrelated structures.

    ``overlap`` (Å) may be lowered once a first geometry has passed.
    """

    def __init__(self, cutoff: float, skin: float = 0.0):
        self.cutoff = cutoff
        self.overlap = OVERLAP
        self._list = NeighborList(
            cutoff=cutoff, full_list=True, sorted=True, skin=skin, n_threads=1
        )

    def __call__(
        self, positions: NDArray, cell: NDArray | None = None, pbc: Sequence[bool] = (False,) * 3
    ) -> Pairs:
        """edge_index [2, E] (sender, receiver) and shifts [E, 3] Å.

        Raises:
            InputError: a coordinate is not finite, or two atoms overlap.
        """
        positions, box, periodic = _checked(positions, cell, pbc)
        i, j, s, d = self._list.compute(
            points=positions, box=box, periodic=periodic, quantities="ijSd"
        )
        within = d < self.cutoff
        if not within.all():
            i, j, s, d = i[within], j[within], s[within], d[within]
        if len(d) and d.min() < self.overlap:
            _raise_overlap(int(i[d.argmin()]), int(j[d.argmin()]), float(d.min()))
        edge_index = np.stack([j, i]).astype(np.int64)
        return edge_index, (s @ box if any(periodic) else np.zeros((len(i), 3)))


def brute_force(
    positions: NDArray,
    cutoff: float,
    cell: NDArray | None = None,
    pbc: Sequence[bool] = (False,) * 3,
) -> Pairs:
    """All pairs by enumeration of images; the tests' second opinion. Same result, any order."""
    positions, box, periodic = _checked(positions, cell, pbc)
    ranges = [range(1)] * 3
    if any(periodic):
        # directions without periodicity may have no lattice vector
        box = np.asarray(complete_cell(np.where(np.asarray(periodic)[:, None], box, 0.0)))
        heights = 1.0 / np.linalg.norm(np.linalg.inv(box), axis=0)
        span = np.ptp(np.linalg.solve(box.T, positions.T), axis=1)
        reach = np.ceil(cutoff / heights + span).astype(int)
        ranges = [range(-r, r + 1) if p else range(1) for r, p in zip(reach, periodic, strict=True)]
    edges, shifts = [], []
    for image in product(*ranges):
        shift = np.array(image, dtype=float) @ box
        distance = np.linalg.norm(positions[None, :] + shift - positions[:, None], axis=2)
        near = distance < cutoff
        if image == (0, 0, 0):
            np.fill_diagonal(near, False)
        i, j = near.nonzero()
        edges.append(np.stack([j, i]))
        shifts.append(np.broadcast_to(shift, (len(i), 3)))
    return np.concatenate(edges, axis=1).astype(np.int64), np.concatenate(shifts)


def build_graph(
    numbers: ArrayLike,
    positions: ArrayLike,
    cutoff: float,
    cell: ArrayLike | None = None,
    pbc: Sequence[bool] = (False,) * 3,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    finder: NeighborFinder | None = None,
) -> Graph:
    """One structure as a Graph.

    Args:
        numbers: [N] atomic numbers.
        positions: [N, 3] Å.
        cutoff: Å.
        cell: [3, 3] Å, rows are lattice vectors; needed where pbc is true.
        pbc: periodic along each lattice vector.
        finder: reuse one with a skin along a trajectory.

    Raises:
        InputError: shapes differ, a coordinate is not finite, atoms overlap.
        UnsupportedSystemError: periodic without a usable cell.
    """
    z = torch.as_tensor(np.asarray(numbers, dtype=np.int64))
    x = np.asarray(positions, dtype=np.float64)
    if x.shape != (len(z), 3):
        raise InputError(f"positions must have shape [{len(z)}, 3], got {list(x.shape)}")
    box = None if cell is None else np.asarray(cell, dtype=np.float64)
    edge_index, shifts = (finder or NeighborFinder(cutoff))(x, box, pbc)
    stored = np.zeros((3, 3)) if box is None or not any(pbc) else box
    return Graph(
        z.to(device),
        torch.as_tensor(x).to(device, dtype),
        torch.as_tensor(edge_index).to(device),
        torch.as_tensor(shifts).to(device, dtype),
        torch.zeros(len(z), dtype=torch.int64, device=device),
        torch.as_tensor(stored).to(device, dtype).reshape(1, 3, 3),
    )


def _checked(
    positions: NDArray, cell: NDArray | None, pbc: Sequence[bool]
) -> tuple[NDArray, NDArray, tuple[bool, bool, bool]]:
    """Positions, a box that vesin takes, and periodicity; raises on what cannot be used."""
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    if len(positions) == 0:
        raise InputError("the structure has no atoms")
    if not np.isfinite(positions).all():
        bad = int((~np.isfinite(positions)).any(axis=1).argmax())
        raise InputError(
            f"atom {bad} has a NaN or infinite coordinate; the simulation that made it has "
            "broken, or the file is damaged. Start from a finite geometry"
        )
    periodic = (bool(pbc[0]), bool(pbc[1]), bool(pbc[2]))
    if not any(periodic):
        return positions, np.zeros((3, 3)), periodic
    box = np.zeros((3, 3)) if cell is None else np.array(cell, dtype=np.float64)
    rows = np.asarray(periodic)
    if box.shape != (3, 3) or not np.isfinite(box).all() or (~box[rows].any(axis=1)).any():
        raise UnsupportedSystemError(
            f"periodic along {periodic}, but the cell has no lattice vector there; set a "
            "3 x 3 cell in Å, or turn periodicity off"
        )
    if abs(np.linalg.det(box)) < 1e-6 and all(periodic):
        raise UnsupportedSystemError("the cell has no volume; its lattice vectors must differ")
    return positions, box, periodic


def _raise_overlap(i: int, j: int, distance: float) -> None:
    raise InputError(
        f"atoms {i} and {j} overlap ({distance:.3f} Å apart, below {OVERLAP} Å): a duplicated "
        "atom, coordinates in nm read as Å, or a simulation that has broken. Check the units "
        "and the starting geometry"
    )
