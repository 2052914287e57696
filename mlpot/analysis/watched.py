"""The guard beside the runs of a batch: it only looks on, and when it first spoke is recorded."""

from typing import Any

import numpy as np

from mlpot.analysis.subjects import Subject
from mlpot.deploy.grader import FeatureGrader, has_statistics
from mlpot.md.guard import Guard, ReplicaGuard
from mlpot.md.replicas import Replicas

Json = dict[str, Any]


class Watched:
    """The guard of a model whose file holds the statistics for one; silent, whatever it sees.

    Attributes:
        first: run -> its first flag: ``ps``, ``atom``, ``grade`` (at most 1e9, for JSON),
            ``reason`` (the length that was reason enough; "" if it was none), and ``positions``
            [N][3] Å.
    """

    def __init__(self, subject: Subject):
        assert subject.model is not None
        device = subject.open().device
        self.guard = Guard(FeatureGrader(subject.model, device), report=lambda line: None)
        self.first: dict[int, Json] = {}

        self.interval = self.guard.every

    def attach(self, replicas: Replicas) -> None:
        """Look at them now, as `mlpot md` does at the start, and on their way."""
        replicas.observers += [ReplicaGuard(self.guard), self]
        for observer in replicas.observers[-2:]:
            observer(replicas)

    def __call__(self, replicas: Replicas) -> None:
        """Called by `Replicas`, after the guard: keep what that has just said."""
        if not self.guard.flags:
            return
        positions = replicas.positions
        for flag in self.guard.flags:
            r = int(flag.system or 0)
            told = {"ps": flag.time, "atom": flag.atom, "grade": min(flag.grade, 1e9)}
            where = np.round(positions[r], 4).tolist()
            self.first.setdefault(r, told | {"reason": flag.reason, "positions": where})
        self.guard.flags.clear()


def watched(subject: Subject) -> Watched | None:
    """None for a calculator, and for a model without statistics."""
    if subject.model is None or not has_statistics(subject.model):
        return None
    return Watched(subject)
