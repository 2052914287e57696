"""Coverage of pair distances: how far apart two elements have been in a training set.

A bond that tears passes lengths that hardly any frame has: of all C and H within 3.5 Å of each
other, in molecules of up to 1000 K, one in 10,000 is 1.4 to 1.7 Å apart. The hidden layer of a
model of many molecules does not notice, because it lies between features that are both common; the
distance itself says it.

For two elements, with d_k the distance (Å) from r to the k-th nearest of the n lengths in the
training set, and m = max(1, n / 5000), so that a few outliers close no hole,

    gap(r) = d_m - (d_{m+9} - d_m) ln(M / n) / (1/m + ... + 1/(m+8)),     n < M; else d_m

What is taken off is how much nearer the nearest of M lengths would be. It makes few frames no
source of holes: neither between samples, nor where a longer run goes a little further than they
did. That it takes so much follows from the spacings of an exponential tail, d_{m+9} - d_m on
average its width times the sum (Rényi, Acta Math. Hung. 4, 191 (1953)). Thermal tails fall faster,
so it is taken off generously.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlpot.graph import Graph

#: Å; no bond of light elements is longer, and further out everything is seen
REACH = 3.0

#: Å; lengths are counted to here, so that those just beyond REACH are known
COUNTED = 3.5

#: Å, of the lengths that are counted
_BIN = 0.01

#: Å, between tabulated gaps, with straight lines between
_STEP = 0.02

#: Å, of a tabulated gap; the largest is 1.275
_UNIT = 0.005

#: M: lengths of two elements in long simulations
_ENOUGH = 100_000

#: of the lengths of two elements, what is too few to be known
_SHARE = 1 / 5000

#: lengths that say how a tail falls
_NEAREST = 10

#: Å, taken off at most: thermal tails are no wider, whatever three samples seem to say
_WIDEST = 0.2


class Pair(NamedTuple):
    """Two atoms at a length that the training set hardly has."""

    atom: int
    other: int
    length: float  # Å
    gap: float  # Å


class Coverage(nn.Module):
    """The gaps of every pair of elements, tabulated; a kilobyte for six elements' pairs.

    Args:
        kinds: number of elements. Atoms come as rows [N] of these, -1 for others.
    """

    def __init__(self, kinds: int):
        super().__init__()
        pairs, nodes = kinds * (kinds + 1) // 2, round(REACH / _STEP) + 1
        self.register_buffer("gaps", torch.zeros(pairs, nodes, dtype=torch.uint8))
        self.register_buffer("index", pair_index(kinds), persistent=False)
        self.gaps: Tensor
        self.index: Tensor

    def forward(self, row: Tensor, edge_index: Tensor, lengths: Tensor) -> Tensor:
        """Largest gap [N] Å over the neighbours of each atom; continuous in the lengths.

        Args:
            row: [N], of the elements.
            edge_index: [2, E].
            lengths: [E] Å.
        """
        near, gaps = self.edges(row, edge_index, lengths)
        worst = lengths.new_zeros(row.shape[0])
        return worst.scatter_reduce(0, edge_index[1, near], gaps, "amax")

    def edges(self, row: Tensor, edge_index: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Which edges are within reach [P], and their gaps [P] Å."""
        near = (lengths < REACH).nonzero()[:, 0]
        kinds = row[edge_index[:, near]]
        start = self.index[kinds[0], kinds[1]] * self.gaps.shape[1]  # -1: any; masked below
        place = lengths[near] / _STEP
        below = place.long().clamp(max=self.gaps.shape[1] - 2)
        table = self.gaps.flatten()
        left, right = (table[start + below + k].to(place) for k in (0, 1))
        gaps = torch.lerp(left, right, place - below) * _UNIT
        return near, torch.where((kinds >= 0).all(0), gaps, 0.0)

    def worst(self, row: Tensor, graph: Graph, lengths: Tensor, atom: int) -> Pair | None:
        """The neighbour of an atom at the largest gap; None if it has no gap."""
        near, gaps = self.edges(row, graph.edge_index, lengths)
        mine = (graph.edge_index[1, near] == atom) & (gaps > 0)
        if not bool(mine.any()):
            return None
        at = int(torch.where(mine, gaps, -1.0).argmax())
        other = int(graph.edge_index[0, near[at]])
        return Pair(atom, other, float(lengths[near[at]]), float(gaps[at]))


def pair_index(kinds: int) -> Tensor:
    """[K, K], the row of every pair of elements, whichever comes first."""
    index = torch.zeros(kinds, kinds, dtype=torch.int64)
    upper = torch.triu_indices(kinds, kinds)
    index[upper[0], upper[1]] = index[upper[1], upper[0]] = torch.arange(upper.shape[1])
    return index


class PairCounts:
    """Lengths in a training set, counted: [pairs of elements, bins].

    Args:
        elements: atomic numbers, ascending.
    """

    def __init__(self, elements: list[int]):
        self.elements = torch.tensor(elements)
        self._index = pair_index(len(elements))
        # float64: a cumulative sum must still tell one of them
        shape = (int(self._index.max()) + 1, round(COUNTED / _BIN))
        self.table = torch.zeros(shape, dtype=torch.float64)

    def add(self, numbers: Tensor, edge_index: Tensor, lengths: Tensor) -> None:
        """Count the edges [2, E] of a graph with both directions of each; lengths [E] Å."""
        near = lengths < COUNTED
        row = torch.searchsorted(self.elements, numbers.cpu())[edge_index[:, near].cpu()]
        pairs, bins = self.table.shape
        place = (lengths[near].cpu() / _BIN).long().clamp(max=bins - 1)
        found = torch.bincount(self._index[row[0], row[1]] * bins + place, minlength=pairs * bins)
        self.table += 0.5 * found.view(pairs, bins)

    def coverage(self, elements: list[int]) -> Coverage:
        """Of some of the elements."""
        row = torch.searchsorted(self.elements, torch.tensor(elements))
        upper = torch.triu_indices(len(row), len(row))
        chosen = self.table[self._index[row[upper[0]], row[upper[1]]]]
        made = Coverage(len(elements))
        made.gaps = (gaps(chosen) / _UNIT).round().clamp(max=255).to(torch.uint8)
        return made


def gaps(counts: Tensor) -> Tensor:
    """Gaps [P, nodes] Å of counted lengths [P, bins], at the lengths that are tabulated."""
    number = counts.sum(1).clamp(min=1.0)
    first = (_SHARE * number).clamp(min=1.0)
    last = first + _NEAREST - 1
    nearest = _distance(counts, first)
    width = (_distance(counts, last) - nearest) / (torch.digamma(last) - torch.digamma(first))[
        :, None
    ]
    longer = torch.log(_ENOUGH / number).clamp(min=0.0)[:, None]
    found = nearest - (width * longer).clamp(max=_WIDEST)
    left = REACH - torch.arange(found.shape[1]) * _STEP  # none beyond, and no step there
    return torch.minimum(found.clamp(min=0.0), left.clamp(min=0.0))


def _distance(counts: Tensor, k: Tensor) -> Tensor:
    """Distance [P, nodes] Å from each node to the k-th [P] nearest length; lengths that are not
    counted, beyond COUNTED, are all there."""
    bins = counts.shape[1]
    up_to = nn.functional.pad(counts.cumsum(1), (1, 0))  # [P, bins + 1]
    node = torch.arange(round(REACH / _STEP) + 1) * round(_STEP / _BIN)
    away = torch.arange(bins + 1)
    high = (node[:, None] + away).clamp(max=bins)
    low = (node[:, None] - away).clamp(min=0)
    within = up_to[:, high] - up_to[:, low]  # [P, nodes, bins + 1]
    enough = (within >= k[:, None, None] - 0.25) | (node[:, None] + away >= bins)
    # a count in the bin next to a node is at no distance from it
    return (enough.int().argmax(2) - 1).clamp(min=0) * _BIN
