"""Frames that a guard keeps for labelling, in extended XYZ."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write
from numpy.typing import ArrayLike, NDArray

#: frames that one run keeps; more of the same excursion teach a model nothing new
MOST = 200


class FlaggedFrames:
    """Appends frames to a file, each all or nothing. `mlpot label` and ASE read it.

    Args:
        path: made with the first frame.
    """

    def __init__(self, path: Path):
        self.path = path
        self.count = 0

    def write(
        self,
        numbers: NDArray[np.int64],
        positions: ArrayLike,
        grades: NDArray[np.float64],
        cell: ArrayLike | None,
        pbc: tuple[bool, ...],
        told: dict[str, Any],
    ) -> None:
        """Add a frame; one with a NaN, or beyond the first 200, is left out.

        Args:
            positions: [N, 3] Å.
            grades: [N], kept per atom; infinite ones as 1e9.
            told: more for the comment line.
        """
        if self.count >= MOST or not np.isfinite(np.asarray(positions)).all():
            return
        atoms = Atoms(numbers, positions, cell=cell, pbc=pbc)
        finite = np.nan_to_num(grades, posinf=1e9)
        atoms.arrays["extrapolation_grade"] = finite
        atoms.info.update(told, extrapolation_grade=float(finite.max()), atom=int(finite.argmax()))
        text = io.StringIO()
        write(text, atoms, format="extxyz")
        self._append(text.getvalue().encode())
        self.count += 1

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
