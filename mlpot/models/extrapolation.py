"""Extrapolation grade: how far an atom is from what a model was trained on. 1 is the line.

The energy is linear in the last hidden layer of the head. There, two things are known after
training: where the training atoms of each element lie, and how wrong the model was on them. With
h the hidden layer of an atom, m and C mean and covariance of its element,

    distance  d = sqrt((h - m)' C^-1 (h - m) / H)        Mahalanobis; 1 for a usual atom
    error     e = d* exp(clamp(w'h* + b))                eV/Å; w and b fitted to training errors
    gap       r                                          Å from usual lengths of pairs: `coverage`
    grade     g = max(e / unit, (d / far)², (r / apart)²)

The force on an atom is also the work of its neighbours: h* is h and the mean hidden layers of the
neighbours within 2 and 3 Å, weighted by `surroundings`, and d* the root mean square of d over the
atom and those within 2 Å.

``far`` is known for each element: a hydrogen whose errors are small may still be where no hydrogen
was. It and ``unit`` are such that of 100 held-back frames like those of the training set 1 has an
atom above 1. The square leaves the order of usual atoms to e, which knows more about it. The clamp
keeps w'h within what the training set has seen, so that outside it the distance decides. The gap is
zero for most atoms; it tells a bond that tears, and ``apart`` is what whole molecules do not reach.

The distance in the last layer is the uncertainty of a linear model on frozen features, as in
last-layer prediction rigidities (Bigi, Chong, Ceriotti, Grasselli, Mach. Learn.: Sci. Technol.
(2024), doi 10.1088/2632-2153/ad805f, arXiv 2403.02251); here centred, and one for each element. The
alternatives that were tried are in `benchmarks/guard`. Statistics are fitted in
`extrapolation_fit`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mlpot.graph import Graph, edge_vectors
from mlpot.models.coverage import Coverage, Pair
from mlpot.models.potential import Potential
from mlpot.models.whitening import Whitening

#: share of held-back frames that the line leaves below 1
QUANTILE = 0.99

#: Å, of the neighbours whose hidden layers count
REACHES = (2.0, 3.0)

#: weight of an atom itself among its neighbours, where distances are averaged
_OWN = 0.5

#: weight that keeps a mean smooth where the last neighbour leaves
_NOTHING = 0.01

#: atomic numbers below this
_NUMBERS = 119


class ExtrapolationInfo(BaseModel):
    """What a model file says of its statistics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    elements: list[int] = Field(description="atomic numbers that the training frames hold")
    width: int = Field(gt=0, description="H, of the last hidden layer")
    unit: float = Field(gt=0, description="eV/Å, the expected error at grade 1")
    apart: float | None = Field(
        None, gt=0, description="Å, from usual lengths of pairs, at grade 1; None in older files"
    )
    lengths_of_start: bool = Field(
        False, description="whether lengths that the model it began from knows are usual too"
    )
    reaches: tuple[float, ...] = Field(
        (), description="Å, of the neighbours whose hidden layers count; none in older files"
    )
    quantile: float = Field(QUANTILE, description="share of held-back frames below grade 1")
    frames: int = Field(0, description="training frames that were looked at")
    held_back: int = Field(0, description="frames that set the line")
    added_to: str = Field(
        "", description="SHA-256 of the first file with these weights, if this is a later one"
    )


class Extrapolation(nn.Module):
    """Statistics of a training set, and the grade that follows from them."""

    def __init__(self, info: ExtrapolationInfo):
        super().__init__()
        self.info = info
        kinds, h = len(info.elements), info.width
        row = torch.full((_NUMBERS,), -1, dtype=torch.int64)
        row[torch.tensor(info.elements, dtype=torch.int64)] = torch.arange(kinds)
        self.register_buffer("row", row, persistent=False)
        self.register_buffer("mean", torch.zeros(kinds, h))
        self.whitening = Whitening(kinds, h)  # turns C into 1
        self.register_buffer("slope", torch.zeros(h * (1 + len(info.reaches))))  # w
        self.register_buffer("offset", torch.zeros(kinds))  # b
        self.register_buffer("bounds", torch.zeros(2))  # of w'h* + b
        self.register_buffer("far", torch.ones(kinds))  # d at grade 1
        self.pairs = None if info.apart is None else Coverage(info.elements)
        self.row: Tensor
        self.mean: Tensor
        self.slope: Tensor
        self.offset: Tensor
        self.bounds: Tensor
        self.far: Tensor

    def forward(self, hidden: Tensor, graph: Graph, vectors: Tensor) -> Tensor:
        """Grades [N] of hidden layers [N, H] of a graph with edge vectors [E, 3] Å; infinite for
        an element never seen, and for NaN."""
        row, lengths = self.row[graph.numbers], pair_lengths(vectors)
        known = row.clamp(min=0)
        around = with_neighbours(hidden, graph.edge_index, lengths, self.info.reaches)
        distance = self.distance(hidden, known)
        error, away = self.parts(distance, around, known, graph.edge_index, lengths)
        grades = torch.maximum(error / self.info.unit, away)
        sound = (row >= 0) & torch.isfinite(grades)
        torn = self.length_grades(graph, vectors)
        return torch.where(sound, grades if torn is None else grades.maximum(torn), torch.inf)

    def parts(
        self, distance: Tensor, around: Tensor, row: Tensor, edge_index: Tensor, lengths: Tensor
    ) -> "Parts":
        """Of d [N] and h* of atoms of row ``row`` [N] of the elements."""
        trend = (around @ self.slope + self.offset[row]).clamp(*self.bounds.unbind())
        mixed = self.mixed(distance, edge_index, lengths)
        return Parts(mixed * trend.exp(), (distance / self.far[row]).square())

    def mixed(self, distance: Tensor, edge_index: Tensor, lengths: Tensor) -> Tensor:
        """d* of d, [N]."""
        if not self.info.reaches:
            return distance
        squares, reach = distance.square().unsqueeze(1), self.info.reaches[0]
        return surroundings(squares, edge_index, lengths, reach, _OWN)[:, 0].sqrt()

    def length_grades(self, graph: Graph, vectors: Tensor) -> Tensor | None:
        """The part of the grades [N] that is due to lengths of pairs, which needs no hidden layer;
        None if those were not noted."""
        if self.pairs is None or self.info.apart is None:
            return None
        gaps = self.pairs(self.row[graph.numbers], graph.edge_index, pair_lengths(vectors))
        return (gaps / self.info.apart).square()

    def torn(self, graph: Graph, atom: int) -> Pair | None:
        """The pair that makes the grade of an atom, if that is above 1 for its length alone."""
        if self.pairs is None or self.info.apart is None:
            return None
        lengths = pair_lengths(edge_vectors(graph))
        pair = self.pairs.worst(self.row[graph.numbers], graph, lengths, atom)
        return pair if pair is not None and pair.gap > self.info.apart else None

    def distance(self, hidden: Tensor, row: Tensor) -> Tensor:
        """d, [N], to the training atoms of row ``row`` [N] of the elements."""
        # to every element at once: fewer operations than one element after the other
        white = self.whitening(hidden.unsqueeze(0) - self.mean.unsqueeze(1))
        return white.square().mean(2).sqrt().gather(0, row.unsqueeze(0))[0]


class Parts(NamedTuple):
    """What the network says of atoms."""

    error: Tensor  # [N] eV/Å, e
    away: Tensor  # [N], (d / far)²


def with_neighbours(
    hidden: Tensor, edge_index: Tensor, lengths: Tensor, reaches: Sequence[float] = REACHES
) -> Tensor:
    """h*, [N, H (1 + reaches)]."""
    means = [surroundings(hidden, edge_index, lengths, r) for r in reaches]
    return torch.cat([hidden, *means], dim=1)


def surroundings(
    values: Tensor, edge_index: Tensor, lengths: Tensor, reach: float, own: float = 0.0
) -> Tensor:
    """Means [N, D] of values [N, D] over the neighbours of each atom, weighted by
    (1 - (r / reach)²)², and over the atom itself with weight ``own``; zero far from everything."""
    near = (lengths < reach).nonzero()[:, 0]
    sender, receiver = edge_index[:, near]
    weight = (1 - (lengths[near] / reach).square()).square().to(values).unsqueeze(1)
    total = values.new_full((values.shape[0], 1), own or _NOTHING)
    summed = (own * values).index_add(0, receiver, weight * values[sender])
    return summed / total.index_add(0, receiver, weight)


def grade(potential: Potential, extrapolation: Extrapolation, graph: Graph) -> Tensor:
    """Grades [N] of the atoms of any number of structures; no gradient is taken."""
    with torch.inference_mode(), last_hidden(potential) as caught:
        vectors = edge_vectors(graph)
        potential.head(potential.latent(graph, vectors))
        return extrapolation(caught[-1], graph, vectors)


@contextmanager
def last_hidden(potential: Potential) -> Iterator[list[Tensor]]:
    """A list that takes the last hidden layer [N, H] of every evaluation: what `result`, the last
    linear map of the head, reads."""
    caught: list[Tensor] = []
    result = potential.head.result
    assert isinstance(result, nn.Linear)
    handle = result.register_forward_pre_hook(lambda _, given: caught.append(given[0].detach()))
    try:
        yield caught
    finally:
        handle.remove()


def pair_lengths(vectors: Tensor) -> Tensor:
    """[E] Å, of edge vectors [E, 3]."""
    return torch.linalg.vector_norm(vectors, dim=1)
