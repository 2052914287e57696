"""The guard beside the runs of a batch: it only looks on, and when it first spoke is recorded."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpot.analysis.molecules import Molecule
from mlpot.analysis.subjects import Subject
from mlpot.deploy.grader import FeatureGrader, has_statistics
from mlpot.md.guard import Flag, Guard, ReplicaGuard
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

    def relaxed(self, molecules: Sequence[Molecule], starts: Sequence[NDArray[np.float64]]) -> None:
        """Look at what relaxing made of the molecule of each run, as `mlpot md` does: a bond that
        the model has lost is flagged at 0 ps, in the geometry as given."""
        for r, (molecule, start) in enumerate(zip(molecules, starts, strict=True)):
            self.guard.watch(molecule.numbers).minimised(molecule.positions, start)
            if self.guard.flags:
                self.first[r] = _told(self.guard.flags[0], molecule.positions)
                self.guard.flags.clear()

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
            self.first.setdefault(r, _told(flag, positions[r]))
        self.guard.flags.clear()


def _told(flag: Flag, positions: NDArray[np.float64]) -> Json:
    told = {"ps": flag.time, "atom": flag.atom, "grade": min(flag.grade, 1e9)}
    return told | {"reason": flag.reason, "positions": np.round(positions, 4).tolist()}


def watched(subject: Subject) -> Watched | None:
    """None for a calculator, and for a model without statistics."""
    if subject.model is None or not has_statistics(subject.model):
        return None
    return Watched(subject)
