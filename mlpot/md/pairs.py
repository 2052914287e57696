"""Neighbours of many separate molecules in motion, as one edge list."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mlpot.neighbors import SKIN, NeighborFinder

#: up to this many atoms all pairs of a molecule are candidates, and no list is ever rebuilt
ALL_PAIRS = 50

#: Å; an atom that went further than this since the last list belongs to a broken simulation,
#: and a list over the space that it crossed would cost more than it is worth
RUNAWAY = 100.0


class PairList:
    """Directed pairs within the cutoff, for molecules of fixed sizes that do not see each other.

    Each molecule has a list of candidate pairs: all of them if it is small, else those within
    cutoff + skin, made again when one of its atoms has moved more than skin / 2.

    Args:
        sizes: number of atoms of each molecule; their atoms follow one another.
        cutoff, skin: Å.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        cutoff: float,
        skin: float = SKIN,
        device: torch.device | str = "cpu",
    ):
        self._cutoff = cutoff
        self._skin = skin
        self._device = device
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        self._large = [r for r, size in enumerate(sizes) if size > ALL_PAIRS]
        owner = np.repeat(np.arange(len(sizes)), sizes)
        watched = np.isin(owner, self._large)  # atoms whose way since the last list matters
        self._watched = torch.as_tensor(watched.nonzero()[0]).to(device)
        self._watched_owner = owner[watched]
        self._own = [
            _all_pairs(size) + first if size <= ALL_PAIRS else np.empty((2, 0), dtype=np.int64)
            for size, first in zip(sizes, self._first[:-1], strict=True)
        ]
        self._reference: Tensor | None = None
        self._join()

    def __call__(self, positions: Tensor) -> Tensor:
        """edge_index [2, E] (sender, receiver) at positions [N, 3] Å; by receiver, then sender."""
        if self._large:
            self._update(positions)
        arms = positions.index_select(0, self._sender) - positions.index_select(0, self._receiver)
        near = torch.linalg.vector_norm(arms, dim=1) < self._cutoff
        chosen = near.nonzero()[:, 0]
        if len(chosen) == len(near):
            return self._candidates
        return self._candidates.index_select(1, chosen)

    def _update(self, positions: Tensor) -> None:
        """Make the lists again of the large molecules that have moved."""
        if self._reference is None:
            self._reference = positions.clone()
            stale = self._large
        else:
            gone = (positions - self._reference).index_select(0, self._watched)
            moved = torch.linalg.vector_norm(gone, dim=1)
            if not bool((moved > 0.5 * self._skin).any()):
                return
            far = moved.cpu().numpy()
            farthest = {r: far[self._watched_owner == r].max() for r in self._large}
            # false for NaN
            stale = [r for r, way in farthest.items() if 0.5 * self._skin < way < RUNAWAY]
        for r in stale:
            atoms = self._atoms(r)
            finder = NeighborFinder(self._cutoff + self._skin)
            finder.overlap = 0.0  # bad input was found at the door
            pairs, _ = finder(positions[atoms].cpu().numpy())
            self._own[r] = pairs[:, np.lexsort(pairs)] + self._first[r]  # by receiver, then sender
            self._reference[atoms] = positions[atoms]
        if stale:
            self._join()

    def _join(self) -> None:
        none = np.empty((2, 0), dtype=np.int64)
        joined = np.ascontiguousarray(np.concatenate([none, *self._own], axis=1))
        self._candidates = torch.as_tensor(joined).to(self._device)
        self._sender, self._receiver = self._candidates

    def _atoms(self, molecule: int) -> slice:
        return slice(int(self._first[molecule]), int(self._first[molecule + 1]))


def _all_pairs(size: int) -> np.ndarray:
    receiver, sender = (~np.eye(size, dtype=bool)).nonzero()
    return np.stack([sender, receiver])
