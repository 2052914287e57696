"""Errors of a model on labels that may be of another level of theory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mlpot.data.loader import GraphLoader
from mlpot.data.record import Record
from mlpot.models.potential import Potential
from mlpot.train.finetune import evaluate


def assess(model: Potential, records: Sequence[Record]) -> dict[str, Any]:
    """Errors, eV per atom and eV/Å, on frames of one composition.

    The mean error of the energies does not count: two levels of theory differ by a constant that
    no simulation notices.
    """
    model.eval()
    wrong = []
    for batch in GraphLoader(records, model.cutoff, shuffle=False, dtype=model.scale.dtype):
        wrong += (model(batch.graph).energy.detach().double().cpu() - batch.energy).tolist()
    shift = float(np.mean(wrong))
    level = [replace(r, energy=r.energy + shift) for r in records if r.energy is not None]
    return plain(evaluate(model, level)._asdict())


def plain(errors: Mapping[str, float]) -> dict[str, Any]:
    """NaN and infinity are no JSON."""
    return {k: v if math.isfinite(v) else None for k, v in errors.items()}
