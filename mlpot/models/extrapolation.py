"""Extrapolation grade: how far an atom is from what a model was trained on. 1 is the line.

The energy is linear in the last hidden layer of the head. There, two things are known after
training: where the training atoms of each element lie, and how wrong the model was on them. With
h the hidden layer of an atom, m and C mean and covariance of its element,

    distance  d = sqrt((h - m)' C^-1 (h - m) / H)        Mahalanobis; 1 for a usual atom
    error     e = d exp(clamp(w'h + b))                  eV/Å; w and b fitted to training errors
    grade     g = max(e / unit, (d / far)²)

``far`` is known for each element: a hydrogen whose errors are small may still be where no hydrogen
was. Both are scaled so that of 100 held-back frames like those of the training set 1 has an atom
with g > 1. The square leaves the order of usual atoms to e, which knows more about it. The clamp
keeps w'h within what the training set has seen, so that outside it the distance decides.

The distance in the last layer is the uncertainty of a linear model on frozen features, as in
last-layer prediction rigidities (Bigi, Chong, Ceriotti, Grasselli, Mach. Learn.: Sci. Technol.
(2024), doi 10.1088/2632-2153/ad805f, arXiv 2403.02251); here centred, and one for each element. The
alternatives that were tried are in `benchmarks/guard`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mlpot.errors import InputError
from mlpot.graph import Graph, edge_vectors
from mlpot.models.potential import Potential

#: share of held-back frames that the line leaves below 1
QUANTILE = 0.99

#: standard deviations to that quantile of a normal distribution
_TAIL = 2.326

#: share of the covariance of all elements in that of one; more where an element is rare
_SHRINK = 0.05

#: eV/Å, below which one error is as good as another
_SMALL = 1e-3

#: of w and b, against errors of fit
_RIDGE = 100.0

#: atoms at a time
_ATOMS = 50_000

#: atomic numbers below this
_NUMBERS = 119

#: a graph and the forces that belong to it, [N, 3] eV/Å
Labelled = tuple[Graph, Tensor]


class ExtrapolationInfo(BaseModel):
    """What a model file says of its statistics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    elements: list[int] = Field(description="atomic numbers that the training frames hold")
    width: int = Field(gt=0, description="H, of the last hidden layer")
    unit: float = Field(gt=0, description="eV/Å, the expected error at grade 1")
    quantile: float = Field(QUANTILE, description="share of held-back frames below grade 1")
    frames: int = Field(0, description="training frames that were looked at")
    held_back: int = Field(0, description="frames that set the line")


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
        # lower triangles of the matrices that turn C into 1, row by row
        self.register_buffer("whiten", torch.zeros(kinds, h * (h + 1) // 2))
        self.register_buffer("slope", torch.zeros(h))  # w
        self.register_buffer("offset", torch.zeros(kinds))  # b
        self.register_buffer("bounds", torch.zeros(2))  # of w'h + b
        self.register_buffer("far", torch.ones(kinds))  # d at grade 1
        self.row: Tensor
        self.mean: Tensor
        self.whiten: Tensor
        self.slope: Tensor
        self.offset: Tensor
        self.bounds: Tensor
        self.far: Tensor

    def forward(self, hidden: Tensor, numbers: Tensor) -> Tensor:
        """Grades [N] of hidden layers [N, H]; infinite for an element never seen, and for NaN."""
        row = self.row[numbers]
        known = row.clamp(min=0)
        trend = (hidden @ self.slope + self.offset[known]).clamp(*self.bounds.unbind())
        distance = self.distance(hidden, known)
        wrong, away = distance * trend.exp() / self.info.unit, (distance / self.far[known]).square()
        sound = (row >= 0) & torch.isfinite(wrong + away)
        return torch.where(sound, torch.maximum(wrong, away), torch.inf)

    def distance(self, hidden: Tensor, row: Tensor) -> Tensor:
        """Mahalanobis distance [N] to the training atoms of row ``row`` [N] of the elements."""
        h = self.info.width
        lower = hidden.new_zeros(len(self.info.elements), h, h)
        below = torch.tril_indices(h, h, device=hidden.device)
        lower[:, below[0], below[1]] = self.whiten
        # to every element at once: fewer operations than one element after the other
        white = torch.bmm(hidden.unsqueeze(0) - self.mean.unsqueeze(1), lower.transpose(1, 2))
        return (white.square().sum(2) / h).sqrt().gather(0, row.unsqueeze(0))[0]


def grade(potential: Potential, extrapolation: Extrapolation, graph: Graph) -> Tensor:
    """Grades [N] of the atoms of any number of structures; no gradient is taken."""
    with torch.inference_mode(), last_hidden(potential) as caught:
        potential.head(potential.backbone(graph, edge_vectors(graph)))
        return extrapolation(caught[-1], graph.numbers)


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


def fit(
    potential: Potential, training: Iterable[Labelled], held_back: Iterable[Labelled]
) -> Extrapolation:
    """Statistics of a training set.

    Args:
        potential: the trained model.
        training: batches of its training frames.
        held_back: batches of frames like those, which it was not trained on.

    Raises:
        InputError: no frames, or fewer than two atoms of every element.
    """
    potential.eval()
    hidden, row, error, elements, frames = _look(potential, training)
    if not frames:
        raise InputError("there are no training frames to fit the statistics of the guard to")
    if len(hidden) <= len(elements):
        raise InputError(
            f"{len(hidden)} atoms of {len(elements)} elements say nothing of how atoms differ; fit "
            "the statistics of the guard to more frames"
        )
    info = ExtrapolationInfo(elements=elements, width=hidden.shape[1], unit=1.0, frames=frames)
    fitted = Extrapolation(info).double()
    _fit_distance(fitted, hidden, row)
    _fit_error(fitted, hidden, row, error)
    fitted = fitted.to(dtype=potential.scale.dtype, device=potential.scale.device)
    _set_line(potential, fitted, held_back)
    return fitted


def _look(
    potential: Potential, batches: Iterable[Labelled]
) -> tuple[Tensor, Tensor, Tensor, list[int], int]:
    """Hidden layers [N, H], rows of the elements [N], force errors [N], elements, frames."""
    hidden, numbers, errors, frames = [], [], [], 0
    for graph, forces in batches:
        with last_hidden(potential) as caught:
            wrong = potential(graph).forces - forces
        hidden.append(caught[-1].double().cpu())
        numbers.append(graph.numbers.cpu())
        errors.append(torch.linalg.vector_norm(wrong, dim=1).double().cpu())
        frames += graph.cell.shape[0]
    if not frames:
        nothing = torch.zeros(0)
        return nothing, nothing, nothing, [], 0
    elements, row = torch.cat(numbers).unique(return_inverse=True)
    return torch.cat(hidden), row, torch.cat(errors), elements.tolist(), frames


def _fit_distance(fitted: Extrapolation, hidden: Tensor, row: Tensor) -> None:
    h = fitted.info.width
    kinds = range(len(fitted.info.elements))
    counts = torch.bincount(row)
    fitted.mean = torch.stack([hidden[row == k].mean(0) for k in kinds])
    centred = hidden - fitted.mean[row]
    shared = centred.T @ centred / (len(centred) - len(counts))
    below = torch.tril_indices(h, h)
    ridge = 1e-6 * shared.diagonal().mean().clamp(min=1e-12) * torch.eye(h, dtype=hidden.dtype)
    for k in kinds:
        mine = centred[row == k]
        share = max(_SHRINK, min(1.0, h / len(mine)))
        own = mine.T @ mine / max(1, len(mine) - 1)
        factor = torch.linalg.cholesky((1 - share) * own + share * shared + ridge)
        inverse = torch.linalg.solve_triangular(factor, torch.eye(h).to(factor), upper=False)
        fitted.whiten[k] = inverse[below[0], below[1]]


def _fit_error(fitted: Extrapolation, hidden: Tensor, row: Tensor, error: Tensor) -> None:
    """Ridge regression of log(error / distance) on hidden layer and element; and `far`."""
    kinds = len(fitted.info.elements)
    distance = torch.cat([fitted.distance(*part) for part in _parts(hidden, row)])
    far = [distance[row == k].quantile(QUANTILE) for k in range(kinds)]
    fitted.far = torch.stack(far).clamp(min=1.0)
    target = torch.log(error + _SMALL) - torch.log(distance + _SMALL)
    centre, spread = hidden.mean(0), hidden.std(0) + 1e-9
    scaled = torch.cat([(hidden - centre) / spread, nn.functional.one_hot(row, kinds)], dim=1)
    level = target.mean()
    normal = scaled.T @ scaled + _RIDGE * torch.eye(scaled.shape[1], dtype=scaled.dtype)
    weights = torch.linalg.solve(normal, scaled.T @ (target - level))
    fitted.slope = weights[: hidden.shape[1]] / spread
    fitted.offset = weights[hidden.shape[1] :] + level - centre @ fitted.slope
    trend = hidden @ fitted.slope + fitted.offset[row]
    low, high = (max(1, round(q * len(trend))) for q in (0.01, 0.99))
    fitted.bounds = torch.stack([trend.kthvalue(low).values, trend.kthvalue(high).values])


def _parts(hidden: Tensor, row: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """So many atoms at a time as memory has room for."""
    return zip(hidden.split(_ATOMS), row.split(_ATOMS), strict=True)


def _set_line(potential: Potential, fitted: Extrapolation, held_back: Iterable[Labelled]) -> None:
    """Scale both parts of the grade to one frame in a hundred, and then both together."""
    hidden, row, frame, count = [], [], [], 0
    for graph, _ in held_back:
        with torch.no_grad(), last_hidden(potential) as caught:
            potential.head(potential.backbone(graph, edge_vectors(graph)))
        hidden.append(caught[-1])
        row.append(fitted.row[graph.numbers])
        frame.append(graph.batch + count)
        count += graph.cell.shape[0]
    if not count:
        raise InputError("no frame was held back to set the line of the guard with")
    known = torch.cat(row) >= 0  # a frame with an element that was never seen tells nothing
    h, k, owner = torch.cat(hidden)[known], torch.cat(row)[known], torch.cat(frame)[known]
    distance = torch.cat([fitted.distance(*part) for part in _parts(h, k)])
    trend = (h @ fitted.slope + fitted.offset[k]).clamp(*fitted.bounds.unbind())

    def line(values: Tensor) -> float:
        worst = values.new_zeros(count).scatter_reduce(0, owner, values, "amax")
        return _line(worst[worst > 0].double().cpu())

    wrong, away = distance * trend.exp(), (distance / fitted.far[k]).square()
    unit, far = line(wrong), line(away)
    both = line(torch.maximum(wrong / unit, away / far))
    fitted.far = fitted.far * (far * both) ** 0.5
    told = {"unit": unit * both, "held_back": count}
    fitted.info = fitted.info.model_copy(update=told)


def _line(worst: Tensor) -> float:
    """The quantile of positive numbers; from few of them, that of the log-normal distribution with
    their mean and spread, where that is larger."""
    logs = worst.log()
    spread = float(logs.std()) if len(logs) > 1 else 0.3  # what molecules at 300 K show
    return max(float(logs.quantile(QUANTILE).exp()), float((logs.mean() + _TAIL * spread).exp()))
