"""Statistics of a training set, for `mlpot.models.extrapolation`."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlpot.errors import InputError
from mlpot.graph import Graph, edge_vectors
from mlpot.models.coverage import REACH, PairCounts
from mlpot.models.extrapolation import (
    QUANTILE,
    REACHES,
    Extrapolation,
    ExtrapolationInfo,
    last_hidden,
    pair_lengths,
    with_neighbours,
)
from mlpot.models.potential import Potential

#: standard deviations to that quantile of a normal distribution
_TAIL = 2.326

#: share of the covariance of all elements in that of one; more where an element is rare
_SHRINK = 0.05

#: eV/Å, below which one error is as good as another
_SMALL = 1e-3

#: of w and b, against errors of fit
_RIDGE = 100.0

#: Å, least gap at grade 1: what a usual vibration may add to the lengths that were seen
_APART = 0.04

#: share of held-back frames with a smaller gap than the one at grade 1. Not QUANTILE: of frames of
#: molecules at 1000 K, one in a hundred holds a bond that tears, and is no measure for the others
_WHOLE = 0.95

#: atoms at a time
_ATOMS = 50_000

#: a graph and the forces that belong to it, [N, 3] eV/Å
Labelled = tuple[Graph, Tensor]


class _Atoms(NamedTuple):
    """All atoms of a set of frames, on the CPU."""

    hidden: Tensor  # [N, H] float64
    around: Tensor  # [N, H (1 + reaches)] float32, `with_neighbours`
    numbers: Tensor  # [N]
    error: Tensor  # [N] eV/Å, of the force; zero where that was not asked for
    frame: Tensor  # [N]
    edge_index: Tensor  # [2, E], of the pairs that count
    lengths: Tensor  # [E] Å


_STACKED = [name for name in _Atoms._fields if name != "edge_index"]


def fit(
    potential: Potential,
    training: Iterable[Labelled],
    held_back: Iterable[Labelled],
    start: Extrapolation | None = None,
) -> Extrapolation:
    """Statistics of a training set.

    Args:
        potential: the trained model.
        training: batches of its training frames.
        held_back: batches of frames like those, which it was not trained on.
        start: statistics of the model that it was fine-tuned from, whose lengths it knows too.

    Raises:
        InputError: no frames, or fewer than two atoms of every element.
    """
    potential.eval()
    counts = PairCounts(potential.elements)
    known = _look(potential, training, REACHES[0], counts)
    if known is None:
        raise InputError("there are no training frames to fit the statistics of the guard to")
    elements, row = known.numbers.unique(return_inverse=True)
    if len(row) <= len(elements):
        raise InputError(
            f"{len(row)} atoms of {len(elements)} elements say nothing of how atoms differ; fit "
            "the statistics of the guard to more frames"
        )
    others = _look(potential, held_back, REACH)
    if others is None:
        raise InputError("no frame was held back to set the line of the guard with")
    info = ExtrapolationInfo(
        elements=elements.tolist(),
        width=known.hidden.shape[1],
        unit=1.0,
        apart=1.0,
        lengths_of_start=start is not None and start.pairs is not None,
        reaches=REACHES,
        frames=int(known.frame[-1]) + 1,
        held_back=int(others.frame[-1]) + 1,
    )
    fitted = Extrapolation(info).double()
    _fit_distance(fitted, known.hidden, row)
    _fit_error(fitted, known, row)
    fitted.pairs = counts.coverage(info.elements)
    if info.lengths_of_start:
        assert start is not None and start.pairs is not None
        fitted.pairs.know(start.pairs.cpu(), start.row.cpu()[elements])
    _set_line(fitted, others)
    return fitted.to(dtype=potential.scale.dtype, device=potential.scale.device)


def _look(
    potential: Potential,
    batches: Iterable[Labelled],
    reach: float,
    counts: PairCounts | None = None,
) -> _Atoms | None:
    """What a model computes for frames; None if there are none.

    Args:
        reach: Å, of the pairs that are kept.
        counts: of a training set; takes its pairs. Without it no forces are computed.
    """
    rows: list[_Atoms] = []
    atoms = frames = 0
    for graph, forces in batches:
        vectors = edge_vectors(graph)
        lengths, error = pair_lengths(vectors), vectors.new_zeros(len(graph.numbers))
        with torch.no_grad(), last_hidden(potential) as caught:
            if counts is None:
                potential.head(potential.latent(graph, vectors))
            else:
                counts.add(graph.numbers, graph.edge_index, lengths)
                error = torch.linalg.vector_norm(potential(graph).forces - forces, dim=1)
        near = lengths < reach
        row = _Atoms(
            caught[-1].double(),
            with_neighbours(caught[-1], graph.edge_index, lengths).float(),
            graph.numbers,
            error.double(),
            graph.batch + frames,
            graph.edge_index[:, near] + atoms,
            lengths[near].double(),
        )
        rows.append(_Atoms._make(field.cpu() for field in row))
        atoms, frames = atoms + len(graph.numbers), frames + graph.cell.shape[0]
    if not frames:
        return None
    whole = {name: torch.cat([getattr(row, name) for row in rows]) for name in _STACKED}
    edges = torch.cat([row.edge_index for row in rows], dim=1)
    return _Atoms(edge_index=edges, **whole)


def _fit_distance(fitted: Extrapolation, hidden: Tensor, row: Tensor) -> None:
    h = fitted.info.width
    kinds = range(len(fitted.info.elements))
    counts = torch.bincount(row)
    fitted.mean = torch.stack([hidden[row == k].mean(0) for k in kinds])
    centred = hidden - fitted.mean[row]
    shared = centred.T @ centred / (len(centred) - len(counts))
    ridge = 1e-6 * shared.diagonal().mean().clamp(min=1e-12) * torch.eye(h, dtype=hidden.dtype)
    covariances = []
    for k in kinds:
        mine = centred[row == k]
        share = max(_SHRINK, min(1.0, h / len(mine)))
        own = mine.T @ mine / max(1, len(mine) - 1)
        covariances.append((1 - share) * own + share * shared + ridge)
    fitted.whitening.set(torch.stack(covariances))


def _fit_error(fitted: Extrapolation, known: _Atoms, row: Tensor) -> None:
    """Ridge regression of log(error / d*) on h* and element; and `far`."""
    kinds, width = len(fitted.info.elements), known.around.shape[1]
    distance = _distances(fitted, known.hidden, row)
    far = [distance[row == k].quantile(QUANTILE) for k in range(kinds)]
    fitted.far = torch.stack(far).clamp(min=1.0)
    mixed = fitted.mixed(distance, known.edge_index, known.lengths)
    target = torch.log(known.error + _SMALL) - torch.log(mixed + _SMALL)
    level = target.mean()
    centre, spread = known.around.double().mean(0), known.around.std(0).double() + 1e-9
    normal = _RIDGE * torch.eye(width + kinds, dtype=torch.float64)
    right = normal.new_zeros(width + kinds)
    parts = (part.split(_ATOMS) for part in (known.around, row, target - level))
    for x, k, y in zip(*parts, strict=True):
        scaled = torch.cat([(x - centre) / spread, nn.functional.one_hot(k, kinds)], dim=1)
        normal, right = normal + scaled.T @ scaled, right + scaled.T @ y
    weights = torch.linalg.solve(normal, right)
    fitted.slope = weights[:width] / spread
    fitted.offset = weights[width:] + level - centre @ fitted.slope
    trend = torch.cat([x.double() @ fitted.slope for x in known.around.split(_ATOMS)])
    trend += fitted.offset[row]
    low, high = (max(1, round(q * len(trend))) for q in (0.01, 0.99))
    fitted.bounds = torch.stack([trend.kthvalue(low).values, trend.kthvalue(high).values])


def _distances(fitted: Extrapolation, hidden: Tensor, row: Tensor) -> Tensor:
    """d [N], of so many atoms at a time as memory has room for."""
    parts = zip(hidden.split(_ATOMS), row.split(_ATOMS), strict=True)
    return torch.cat([fitted.distance(*part) for part in parts])


def _set_line(fitted: Extrapolation, others: _Atoms) -> None:
    """Scale error and distance to one frame in a hundred, each and then both together; and the gap
    to what whole molecules show."""
    row = fitted.row[others.numbers]
    known = row >= 0  # an atom of an element that was never seen tells nothing
    distance = _distances(fitted, others.hidden, row.clamp(min=0))
    pairs = others.edge_index, others.lengths
    error, away = fitted.parts(distance, others.around.double(), row.clamp(min=0), *pairs)
    assert fitted.pairs is not None
    gap = fitted.pairs(row, *pairs)

    def largest(values: Tensor) -> Tensor:
        """In the atoms of every frame; zero where all are unknown."""
        worst = values.new_zeros(fitted.info.held_back)
        return worst.scatter_reduce(0, others.frame[known], values[known], "amax")

    unit, far = _line(largest(error)), _line(largest(away))
    both = _line(largest(torch.maximum(error / unit, away / far)))
    fitted.far = fitted.far * (far * both) ** 0.5
    apart = max(_APART, float(largest(gap).quantile(_WHOLE)))
    told = {"unit": unit * both, "apart": apart}
    fitted.info = fitted.info.model_copy(update=told)


def _line(worst: Tensor) -> float:
    """The quantile of positive numbers; from few of them, that of the log-normal distribution with
    their mean and spread, where that is larger."""
    logs = worst[worst > 0].log()
    spread = float(logs.std()) if len(logs) > 1 else 0.3  # what molecules at 300 K show
    return max(float(logs.quantile(QUANTILE).exp()), float((logs.mean() + _TAIL * spread).exp()))
