"""Frames that a guard keeps for labelling, in extended XYZ."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write
from numpy.typing import ArrayLike, NDArray

#: frames that one run keeps; more of the same excursion teach a model nothing new
MOST = 200

#: of one of many replicas, at least
LEAST = 10


class FlaggedFrames:
    """Appends frames to a file, each all or nothing. `mlpot label` and ASE read it.

    Args:
        path: made with the first frame.

    Attributes:
        count: frames that were added.
        left_out: frames beyond the most that are kept of a system.
    """

    def __init__(self, path: Path):
        self.path = path
        self.count = self.left_out = 0
        self._most = MOST
        self._of: Counter[int | None] = Counter()  # replica -> frames asked for

    def spread(self, systems: int) -> None:
        """Give each of so many replicas a share, so that one excursion does not use up all."""
        self._most = max(LEAST, MOST // systems)

    def write(
        self,
        numbers: NDArray[np.int64],
        positions: ArrayLike,
        grades: NDArray[np.float64],
        cell: ArrayLike | None,
        pbc: tuple[bool, ...],
        told: dict[str, Any],
        last: bool = False,
    ) -> str:
        """Add a frame; one with a NaN, or beyond the share of its replica, is left out.

        Args:
            positions: [N, 3] Å.
            grades: [N], kept per atom; infinite ones as 1e9.
            told: more for the comment line; ``replica`` says whose frame it is.
            last: whether it is one of the few before a break, which are kept in any case.

        Returns:
            a sentence where frames of a replica begin to be left out, else "".
        """
        if not np.isfinite(np.asarray(positions)).all():
            return ""
        system = told.get("replica")
        self._of[system] += 1
        if self._of[system] > self._most and not last:
            self.left_out += 1
            return self._full(system) if self._of[system] == self._most + 1 else ""
        atoms = Atoms(numbers, positions, cell=cell, pbc=pbc)
        finite = np.nan_to_num(grades, posinf=1e9)
        atoms.arrays["extrapolation_grade"] = finite
        atoms.info.update(told, extrapolation_grade=float(finite.max()), atom=int(finite.argmax()))
        text = io.StringIO()
        write(text, atoms, format="extxyz")
        self._append(text.getvalue().encode())
        self.count += 1
        return ""

    def _full(self, system: int | None) -> str:
        whose = "" if system is None else f" of replica {system}"
        return (
            f"{self.path} has {self._most} frames{whose}, the most that are kept; later ones are "
            "left out"
        )

    def _append(self, data: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab", buffering=0) as file:
                if file.write(data) != len(data):  # a disk that is full may take a part
                    raise OSError(28, "No space left on device", str(self.path))
        except OSError:
            if self.path.exists():
                with self.path.open("r+b") as file:
                    file.truncate(before)
                if not before:
                    self.path.unlink()
            raise
