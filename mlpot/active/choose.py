"""Of many candidates, the few that are worth a calculation."""

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from mlpot.active.explore import LAST, THERMAL
from mlpot.data.loader import GraphLoader
from mlpot.data.record import Record
from mlpot.graph import edge_vectors, to
from mlpot.models.extrapolation import last_hidden
from mlpot.models.potential import Potential


def choose(
    candidates: Sequence[Atoms],
    known: Sequence[Record],
    model: Potential,
    frames: int,
    initial: int,
) -> list[Atoms]:
    """Frames to label.

    Of those that nothing flagged, evenly spaced ones: they are to be what the molecule does at
    that temperature, and set the line of the next guard. Of the others, those that differ most from
    one another and from what is labelled already.

    Args:
        candidates: from `mlpot.active.explore`, in the order of time.
        known: labelled frames of the same molecule.
        model: whose features say what differs.
        frames: flagged frames, at most.
        initial: of the others, at most.
    """
    calm = [a for a in candidates if a.info["why"] == THERMAL]
    flagged = [a for a in candidates if a.info["why"] != THERMAL]
    # what broke a simulation comes first where it costs nothing to prefer it
    flagged.sort(key=lambda a: a.info["why"] != LAST)
    places = np.unique(np.linspace(0, len(calm) - 1, min(initial, len(calm))).round().astype(int))
    chosen = [calm[i] for i in places]
    if len(flagged) > frames:
        mine = [_record(a) for a in [*flagged, *chosen]]
        features = describe(model, [*mine, *known])
        picked = farthest(features[: len(flagged)], features[len(flagged) :], frames)
        flagged = [flagged[i] for i in picked]
    return [*chosen, *flagged]


def farthest(points: NDArray, taken: NDArray, count: int) -> list[int]:
    """Greedy farthest-point choice: each time the point furthest from all that are taken.

    Args:
        points: [P, D].
        taken: [T, D], taken before; if there are none, the first point begins.
        count: points to take.

    Returns:
        indices, ascending.
    """
    nearest = np.full(len(points), np.inf)
    for other in taken:
        nearest = np.minimum(nearest, np.linalg.norm(points - other, axis=1))
    chosen: list[int] = []
    for _ in range(min(count, len(points))):
        best = int(nearest.argmax())
        chosen.append(best)
        nearest = np.minimum(nearest, np.linalg.norm(points - points[best], axis=1))
        nearest[chosen] = -1.0
    return sorted(chosen)


def describe(model: Potential, records: Sequence[Record]) -> NDArray[np.float64]:
    """Features [F, D] of frames of one composition: mean and standard deviation, over the atoms of
    each element, of the last hidden layer that the guard looks at; each of variance 1."""
    rows = []
    model.eval()
    dtype, device = model.scale.dtype, model.scale.device
    for batch in GraphLoader(records, model.cutoff, shuffle=False, dtype=dtype):
        graph = to(batch.graph, device, dtype)
        with torch.inference_mode(), last_hidden(model) as caught:
            model.head(model.latent(graph, edge_vectors(graph)))
        hidden = caught[-1].double().cpu().numpy()
        owner, numbers = graph.batch.cpu().numpy(), graph.numbers.cpu().numpy()
        rows += [_pooled(hidden[owner == b], numbers[owner == b]) for b in range(len(batch.energy))]
    features = np.stack(rows)
    spread = features.std(axis=0)
    moving = spread > 1e-9
    return features[:, moving] / spread[moving]


def _pooled(hidden: NDArray, numbers: NDArray) -> NDArray:
    parts = [hidden[numbers == z] for z in np.unique(numbers)]
    return np.concatenate([f(axis=0) for part in parts for f in (part.mean, part.std)])


def _record(atoms: Atoms) -> Record:
    return Record(numbers=atoms.numbers.astype(np.int64), positions=atoms.positions)
