"""Record: one structure with its labels, in eV and Å. `check_records` is the one validator."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlpot.errors import DataError

#: Å; closer atoms are one atom written twice, or nm read as Å. The same number as in
#: mlpot.neighbors, repeated (a test compares them) because that module imports torch.
OVERLAP = 0.3

# No molecule is drawn along this direction by habit, so few pairs coincide when projected on it.
_LINE = np.array([0.5377, 0.3163, 0.7816])
_LINE /= np.linalg.norm(_LINE)


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One structure and what is known about it. Not validated here: see `check_records`.

    Arrays may be views into one array that many records share: do not write to them.
    """

    numbers: NDArray[np.int64]  # [N] atomic numbers
    positions: NDArray[np.floating]  # [N, 3] Å, in the precision of the file
    energy: float | None = None  # eV, total
    forces: NDArray[np.floating] | None = None  # [N, 3] eV/Å
    cell: NDArray[np.floating] | None = None  # [3, 3] Å, rows; None if not periodic
    pbc: tuple[bool, bool, bool] = (False, False, False)
    charge: int = 0  # elementary charges, total
    group: str = ""  # the molecule; a split never separates what shares it
    subset: str = ""  # where in the data set the frame comes from
    level: str = ""  # level of theory of the labels


def formula(numbers: NDArray[np.int64]) -> str:
    """Chemical formula in Hill order: C, H, then the other elements by symbol."""
    return _hill(np.asarray(numbers, dtype=np.int64).tobytes())


@lru_cache(maxsize=4096)
def _hill(numbers: bytes) -> str:
    count = Counter(chemical_symbols[z] for z in np.frombuffer(numbers, dtype=np.int64))
    first = [s for s in ("C", "H") if s in count] if "C" in count else []
    symbols = first + sorted(set(count) - set(first))
    return "".join(s + (str(count[s]) if count[s] > 1 else "") for s in symbols)


def check_records(
    records: Sequence[Record],
    *,
    need_energy: bool,
    need_forces: bool,
    allow_charged: bool = False,
) -> None:
    """Return if the records can be used, else say which frame cannot, why, and what to do.

    Args:
        records: all frames of a data set.
        need_energy: every frame must have an energy.
        need_forces: every frame must have forces.
        allow_charged: do not refuse frames with a net charge (readers keep them).

    Raises:
        DataError: no frames; wrong shapes; a number that is not finite; a label that is
            missing; a net charge; two atoms of one cell closer than 0.3 Å (images are not
            compared).
    """
    if not records:
        raise DataError("there are no frames. Check the path, and the filter that selected them")
    for i, record in enumerate(records):
        problem = _problem(record, need_energy, need_forces, allow_charged)
        if problem:
            raise DataError(f"frame {i}: {problem}")
    frame = np.repeat(np.arange(len(records)), [len(r.numbers) for r in records])
    numbers = np.concatenate([r.numbers for r in records])
    unknown = (numbers < 1) | (numbers >= len(chemical_symbols))
    if unknown.any():
        at = int(unknown.argmax())
        raise DataError(
            f"frame {frame[at]}: {numbers[at]} is not an atomic number. Remove padding or "
            "ghost atoms"
        )
    positions = np.concatenate([r.positions for r in records])
    _check_finite(positions, frame, "coordinate")
    labelled = np.array([r.forces is not None for r in records])
    if labelled.any():
        forces = np.concatenate([r.forces for r in records if r.forces is not None])
        _check_finite(forces, frame[labelled[frame]], "force")
    _check_overlap(positions, frame)


def _problem(record: Record, need_energy: bool, need_forces: bool, allow_charged: bool) -> str:
    """What is wrong with one frame, or nothing."""
    n = len(record.numbers)
    if n == 0:
        return "it has no atoms. Remove it"
    if record.positions.shape != (n, 3):
        return f"positions must have shape [{n}, 3], got {list(record.positions.shape)}"
    if record.forces is not None and record.forces.shape != (n, 3):
        return f"forces must have shape [{n}, 3], got {list(record.forces.shape)}"
    if record.energy is None:
        if need_energy:
            return (
                "it has no energy. Remove it, or tell the reader under which name energies "
                "are stored (extended XYZ: --energy-key, or energy_key=)"
            )
    elif not np.isfinite(record.energy):
        return f"its energy is {record.energy}: the calculation has failed. Remove it"
    if need_forces and record.forces is None:
        return (
            "it has no forces. Remove it, label it, or tell the reader under which name forces "
            "are stored (extended XYZ: --forces-key, or forces_key=)"
        )
    if record.charge and not allow_charged:
        return (
            f"its net charge is {record.charge:+d}, and the models cover neutral structures "
            "only. Keep the frames with charge 0"
        )
    if any(record.pbc) and (record.cell is None or np.shape(record.cell) != (3, 3)):
        return f"it is periodic along {record.pbc} without a 3 x 3 cell. Set the cell or no pbc"
    return ""


def _check_finite(values: NDArray, frame: NDArray, what: str) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        at = int(bad.argmax())
        atom = at - int(np.searchsorted(frame, frame[at]))
        raise DataError(
            f"frame {frame[at]}: atom {atom} has a {what} that is NaN or infinite: the "
            "calculation has failed, or the file is damaged. Remove the frame"
        )


def _check_overlap(positions: NDArray, frame: NDArray) -> None:
    """Raise if two atoms of a frame are closer than OVERLAP.

    Sorted by their projection on a line, close atoms are close in the order too, so only
    neighbours in that order are compared: a second for four million atoms.
    """
    line = positions @ _LINE.astype(positions.dtype)
    order = np.lexsort((line, frame))
    line, owner = line[order], frame[order]
    first, step = np.arange(len(order)), 0
    while len(first):
        step += 1
        first = first[first + step < len(order)]
        near = owner[first + step] == owner[first]
        first = first[near & (line[first + step] - line[first] < OVERLAP)]
        a, b = order[first], order[first + step]
        distance = np.linalg.norm(positions[a] - positions[b], axis=1)
        if len(first) and distance.min() < OVERLAP:
            at = int(distance.argmin())
            start = int(np.searchsorted(frame, frame[a[at]]))
            i, j = sorted((int(a[at]) - start, int(b[at]) - start))
            raise DataError(
                f"frame {frame[a[at]]}: atoms {i} and {j} are {distance[at]:.3f} Å apart: a "
                "duplicated atom, or coordinates in nm or another unit read as Å. Check the "
                "length unit, or remove the frame"
            )
