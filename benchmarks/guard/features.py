"""What a model says of atoms, in numpy, for `calibrate.py`: features of every kind, and errors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mlpot.data.loader import GraphLoader
from mlpot.data.record import Record
from mlpot.deploy.grader import CommitteeGrader
from mlpot.graph import edge_vectors
from mlpot.models.extrapolation import (
    Extrapolation,
    last_hidden,
    pair_lengths,
    with_neighbours,
)
from mlpot.models.layers import vector_length
from mlpot.models.potential import Potential


class Atoms(NamedTuple):
    """All atoms of a set of frames."""

    numbers: NDArray[np.int64]  # [N]
    frame: NDArray[np.int64]  # [N]
    error: NDArray[np.float64]  # [N] eV/Å, |F - F label|; NaN where there are no labels
    features: dict[str, NDArray[np.float64]]  # [N, H] of each kind
    grade: NDArray[np.float64]  # [N], of the model's own statistics; NaN without


def look(model: Potential, records: Sequence[Record], fitted: Extrapolation | None = None) -> Atoms:
    """Evaluate a model and keep what it computes on the way."""
    layers: list[Any] = []
    hooks = [
        layer.register_forward_hook(lambda _, given, out: layers.append((given[0], out)))
        for layer in model.backbone.layers  # type: ignore[union-attr]
    ]
    rows: dict[str, list[NDArray]] = {}
    frames = 0
    for b in GraphLoader(records, model.cutoff, 700, shuffle=False):
        layers.clear()
        with last_hidden(model) as caught:
            prediction = model(b.graph)
            with torch.no_grad():
                found = model.latent(b.graph, edge_vectors(b.graph))
        half = layers[: len(hooks)]
        each = [torch.cat([x + out[0], vector_length(out[1], 0.0)], 1) for x, out in half]
        lengths = vector_length(found.vector, 0.0)
        forces = prediction.forces.norm(dim=1, keepdim=True)
        near = pair_lengths(edge_vectors(b.graph))
        kept = {
            "numbers": b.graph.numbers,
            "frame": b.graph.batch + frames,
            "error": (prediction.forces - b.forces).norm(dim=1),
            "scalars": found.scalar,
            "vector lengths": lengths,
            "scalars, vector lengths": torch.cat([found.scalar, lengths], 1),
            "every layer": torch.cat([*each, found.scalar, lengths], 1),
            "last hidden layer": caught[0],
            "last hidden layer, neighbours": with_neighbours(caught[0], b.graph.edge_index, near),
            "scalars, force": torch.cat([found.scalar, torch.log(forces + 0.1)], 1),
            "force": torch.log(forces + 0.1),
            "grade": torch.full((len(b.graph.numbers),), torch.nan),
        }
        if fitted is not None:
            with torch.no_grad():
                kept["grade"] = fitted(caught[0], b.graph, edge_vectors(b.graph))
        for name, value in kept.items():
            rows.setdefault(name, []).append(value.detach().numpy().copy())
        frames += b.graph.cell.shape[0]
    for hook in hooks:
        hook.remove()
    whole = {name: np.concatenate(parts) for name, parts in rows.items()}
    plain = {k: whole.pop(k) for k in ("numbers", "frame", "error", "grade")}
    features = {k: v.astype(np.float64) for k, v in whole.items()}
    return Atoms(
        plain["numbers"],
        plain["frame"],
        plain["error"].astype(np.float64),
        features,
        plain["grade"].astype(np.float64),
    )


def disagreement(committee: CommitteeGrader, records: Sequence[Record]) -> NDArray[np.float64]:
    """Grades [N] of a committee, in the order of `look`."""
    loader = GraphLoader(records, committee.cutoff, 700, shuffle=False)
    return np.concatenate([committee.grades(b.graph).double().numpy() for b in loader])


def per_frame(atoms: Atoms, values: NDArray, how: str) -> NDArray[np.float64]:
    """The largest (``max``) or root mean square (``rms``) value of every frame."""
    count = int(atoms.frame.max()) + 1
    if how == "max":
        out = np.full(count, -np.inf)
        np.maximum.at(out, atoms.frame, values)
        return out
    squares = np.bincount(atoms.frame, values**2, minlength=count)
    return np.sqrt(squares / np.bincount(atoms.frame, minlength=count))
