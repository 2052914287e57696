"""Coverage of pair distances: how far apart two elements have been in a training set.

A bond that tears passes lengths that hardly any frame has. The hidden layer of a model of many
molecules does not notice, because it lies between features that are both common; the distance
itself says it. Hydrogens leave first and fastest, and hydroxyl groups, where C and H are 1.6 to
1.8 Å apart without a bond, would hide it. So a hydrogen and the atom next to it, its bond, are
counted apart from all other pairs of these elements.

For two elements, with d_k the distance (Å) from r to the k-th nearest of the n lengths in the
training set, and m = max(1, share n), so that a few outliers close no hole,

    gap(r) = d_m - (d_{m+k} - d_m) t / (1/m + ... + 1/(m+k-1)),     t = max(0, ln(M / n))

with k = max(9, m). What is taken off is how much nearer the nearest of M lengths would be. It makes
few frames no source of holes: neither between samples, nor where a longer run goes a little further
than they did. That it takes so much follows from the spacings of an exponential tail, d_{m+k} - d_m
on average its width times the sum (Rényi, Acta Math. Hung. 4, 191 (1953)). Thermal tails fall
faster, so it is taken off generously. Of bonds, a larger share is counted as torn; those that are
whole swing further than that, and t is at least 3.

A model that was fine-tuned knows the lengths of the training set that it began from too: of the two
gaps the smaller counts. The N...H of a ring that few frames have not caught at 2.7 Å is no news to
a network that has seen it in thousands of molecules; a bond that tears is in neither set.
"""

from collections.abc import Sequence
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

#: Å, by which the two directions of a pair may differ
_SAME = 1e-4

#: Å, between tabulated gaps, with straight lines between
_STEP = 0.02

#: Å, of a tabulated gap; the largest is 1.275
_UNIT = 0.005

#: M: lengths of two elements in long simulations
_ENOUGH = 100_000

#: of the lengths of two elements, what is too few to be known. Molecules at 1000 K have stretched
#: and torn bonds, of hydrogen above all
_SHARE = 1 / 5000
_SHARE_BOND = 1 / 150
#: of a hydrogen and atoms that it is not bonded to: rare groups are to count there
_SHARE_OTHER = 1 / 100_000

#: t of bonds, at least
_SWING = 3.0

#: k, lengths that say how a tail falls, at least; more where they are dense, as bins are 0.01 Å
_NEAREST = 9

#: Å, taken off at most: thermal tails are no wider, whatever three samples seem to say
_WIDEST = 0.2


class Pair(NamedTuple):
    """Two atoms at a length that the training set hardly has."""

    atom: int
    other: int
    length: float  # Å
    gap: float  # Å


class Coverage(nn.Module):
    """The gaps of every pair of elements, tabulated.

    Args:
        elements: atomic numbers, ascending. Atoms come as rows [N] of these, -1 for others.
    """

    def __init__(self, elements: Sequence[int]):
        super().__init__()
        self.rows = TableRows(elements)
        shape = len(self.rows), round(REACH / _STEP) + 1
        self.register_buffer("gaps", torch.zeros(shape, dtype=torch.uint8))
        self.gaps: Tensor

    def forward(self, row: Tensor, edge_index: Tensor, lengths: Tensor) -> Tensor:
        """Largest gap [N] Å over the neighbours of each atom.

        Args:
            row: [N], of the elements.
            edge_index: [2, E], both directions of every pair.
            lengths: [E] Å.
        """
        near, gaps = self.edges(row, edge_index, lengths)
        worst = lengths.new_zeros(row.shape[0])
        return worst.scatter_reduce(0, edge_index[1, near], gaps, "amax")

    def edges(self, row: Tensor, edge_index: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Which edges are within reach [P], and their gaps [P] Å."""
        near = (lengths < REACH).nonzero()[:, 0]
        pairs, apart = edge_index[:, near], lengths[near]
        start = self.rows(row, pairs, apart) * self.gaps.shape[1]
        place = apart / _STEP
        below = place.long().clamp(max=self.gaps.shape[1] - 2)
        table = self.gaps.flatten()
        left, right = (table[start + below + k].to(place) for k in (0, 1))
        gaps = torch.lerp(left, right, place - below) * _UNIT
        return near, torch.where((row[pairs] >= 0).all(0), gaps, 0.0)

    def know(self, other: "Coverage", row: Tensor) -> None:
        """Count as known what another table knows; ``row`` [K], of each element of this one in
        that, -1 where it has it not."""
        at = self.rows.among(other.rows, row.clamp(min=0))
        there, (first, second) = row >= 0, self.rows.upper
        hydrogen = there[self.rows.hydrogen : self.rows.hydrogen + 1].any()
        both = torch.cat([there[first] & there[second], there & hydrogen])
        self.gaps = torch.where(both[:, None], self.gaps.minimum(other.gaps[at]), self.gaps)

    def worst(self, row: Tensor, graph: Graph, lengths: Tensor, atom: int) -> Pair | None:
        """The neighbour of an atom at the largest gap; None if it has no gap."""
        near, gaps = self.edges(row, graph.edge_index, lengths)
        mine = (graph.edge_index[1, near] == atom) & (gaps > 0)
        if not bool(mine.any()):
            return None
        at = int(torch.where(mine, gaps, -1.0).argmax())
        other = int(graph.edge_index[0, near[at]])
        return Pair(atom, other, float(lengths[near[at]]), float(gaps[at]))


class TableRows(nn.Module):
    """Which row of a table a pair belongs to: first every pair of elements, whichever comes first;
    then the bonds of hydrogen, to every element.

    Args:
        elements: atomic numbers, ascending.
    """

    def __init__(self, elements: Sequence[int]):
        super().__init__()
        kinds = len(elements)
        index = torch.zeros(kinds, kinds, dtype=torch.int64)
        self.upper = torch.triu_indices(kinds, kinds)
        self.pairs = self.upper.shape[1]
        index[self.upper[0], self.upper[1]] = torch.arange(self.pairs)
        self.register_buffer("index", index.maximum(index.T), persistent=False)
        self.index: Tensor
        self.hydrogen = list(elements).index(1) if 1 in elements else kinds  # kinds: none is

    def __len__(self) -> int:
        return self.pairs + self.index.shape[0]

    def forward(self, row: Tensor, edge_index: Tensor, lengths: Tensor) -> Tensor:
        """[E], as `Coverage.forward`; of an atom that is not in the table, any row."""
        nearest = lengths.new_full(row.shape, torch.inf)
        nearest = nearest.scatter_reduce(0, edge_index[1], lengths, "amin")
        kinds = row[edge_index]
        next_to = lengths < nearest[edge_index] + _SAME
        bond = ((kinds == self.hydrogen) & next_to).any(0)
        other = (kinds.sum(0) - self.hydrogen).clamp(min=0)
        return torch.where(bond, self.pairs + other, self.index[kinds[0], kinds[1]])

    def shares(self) -> Tensor:
        """What is too few to be known, [rows]."""
        shares = torch.full((len(self),), _SHARE, dtype=torch.float64)
        shares[: self.pairs][(self.upper == self.hydrogen).any(0)] = _SHARE_OTHER
        shares[self.pairs :] = _SHARE_BOND
        return shares

    def swing(self) -> Tensor:
        """The least t, [rows]."""
        return _SWING * (torch.arange(len(self)) >= self.pairs)

    def among(self, whole: "TableRows", row: Tensor) -> Tensor:
        """Where these rows are in a table of more elements; ``row`` [K] of its elements."""
        return torch.cat([whole.index[row[self.upper[0]], row[self.upper[1]]], whole.pairs + row])


class PairCounts:
    """Lengths in a training set, counted: [rows, bins].

    Args:
        elements: atomic numbers, ascending.
    """

    def __init__(self, elements: list[int]):
        self.elements, self.rows = torch.tensor(elements), TableRows(elements)
        # float64: a cumulative sum must still tell one of them
        self.table = torch.zeros(len(self.rows), round(COUNTED / _BIN), dtype=torch.float64)

    def add(self, numbers: Tensor, edge_index: Tensor, lengths: Tensor) -> None:
        """Count the edges [2, E] of a graph with both directions of each; lengths [E] Å."""
        near = lengths < COUNTED
        row = torch.searchsorted(self.elements, numbers.cpu())
        pairs, apart = edge_index[:, near].cpu(), lengths[near].cpu()
        rows, bins = self.table.shape
        place = self.rows(row, pairs, apart) * bins + (apart / _BIN).long().clamp(max=bins - 1)
        self.table += 0.5 * torch.bincount(place, minlength=rows * bins).view(rows, bins)

    def coverage(self, elements: list[int]) -> Coverage:
        """Of some of the elements."""
        made = Coverage(elements)
        row = torch.searchsorted(self.elements, torch.tensor(elements))
        found = gaps(
            self.table[made.rows.among(self.rows, row)], made.rows.shares(), made.rows.swing()
        )
        made.gaps = (found / _UNIT).round().clamp(max=255).to(torch.uint8)
        return made


def gaps(counts: Tensor, share: Tensor, swing: Tensor) -> Tensor:
    """Gaps [P, nodes] Å of counted lengths [P, bins], at the lengths that are tabulated; a share
    [P] of them is too few to be known, and t at least ``swing`` [P]."""
    number = counts.sum(1).clamp(min=1.0)
    first = (share * number).clamp(min=1.0)
    last = first + first.clamp(min=_NEAREST)
    nearest = _distance(counts, first)
    width = (_distance(counts, last) - nearest) / (torch.digamma(last) - torch.digamma(first))[
        :, None
    ]
    longer = torch.log(_ENOUGH / number).maximum(swing)[:, None]
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
