"""Seeded splits, stored as index files, that never divide a molecule unless asked to."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from mlpot.data.record import Record
from mlpot.errors import DataError


class Split(BaseModel):
    """Indices of the three parts, and what they were made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    by: str
    frames: int
    fingerprint: str
    train: list[int]
    validation: list[int]
    test: list[int]


def fingerprint(records: Sequence[Record]) -> str:
    """SHA-256 over composition and energy of every frame: another data set, another print."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(np.asarray(record.numbers, dtype=np.uint8).tobytes())
        digest.update(np.float64(np.nan if record.energy is None else record.energy).tobytes())
    return digest.hexdigest()


def make_split(
    records: Sequence[Record],
    train: float | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    by: str = "auto",
) -> Split:
    """Divide at random.

    Args:
        train, validation, test: a share of all if at most 1, else a count. They count frames
            when splitting by frame, molecules when splitting by group. ``train=None`` takes
            all that is left.
        seed: of numpy's PCG64; the same on every machine.
        by: ``group`` keeps all frames of a molecule in one part, ``frame`` does not,
            ``auto`` is ``group`` where there are at least ten groups.

    Raises:
        DataError: the parts ask for more than there is, or a needed part would be empty.
    """
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.group, []).append(index)
    if by not in ("auto", "group", "frame"):
        raise DataError(f"split by 'group', 'frame' or 'auto', not {by!r}")
    if by == "auto":
        by = "group" if len(groups) >= 10 else "frame"
    units = list(groups.values()) if by == "group" else [[i] for i in range(len(records))]
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(units))
    counts = _counts(len(units), by, train, validation, test)
    parts, start = [], 0
    for count in counts:
        chosen = order[start : start + count]
        parts.append(sorted(i for unit in chosen for i in units[unit]))
        start += count
    return Split(
        seed=seed,
        by=by,
        frames=len(records),
        fingerprint=fingerprint(records),
        validation=parts[0],
        test=parts[1],
        train=parts[2],
    )


def _counts(
    units: int, by: str, train: float | None, validation: float, test: float
) -> tuple[int, int, int]:
    def count(part: float) -> int:
        return round(part * units) if part <= 1 else int(part)

    n_validation = max(1, count(validation)) if validation > 0 else 0
    n_test = max(1, count(test)) if test > 0 else 0
    rest = units - n_validation - n_test
    n_train = rest if train is None else min(count(train), rest) if train <= 1 else int(train)
    if n_train < 1 or n_train > rest:
        raise DataError(
            f"cannot take {n_train} for training, {n_validation} for validation and {n_test} for "
            f"test out of {units} {'molecules' if by == 'group' else 'frames'}; ask for less"
        )
    return n_validation, n_test, n_train


def save_split(split: Split, path: str | Path) -> None:
    """Write the index file (JSON)."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(split.model_dump()) + "\n")
    part.replace(path)


def load_split(path: str | Path, records: Sequence[Record]) -> Split:
    """Read an index file and check that it belongs to these records."""
    try:
        split = Split.model_validate_json(Path(path).read_text())
    except (OSError, ValidationError) as error:
        raise DataError(f"{path} is no valid split file: {error}") from error
    if split.frames != len(records) or split.fingerprint != fingerprint(records):
        raise DataError(
            f"{path} was made for other data ({split.frames} frames, here {len(records)}); read "
            "the same files in the same order, or make a new split"
        )
    return split
