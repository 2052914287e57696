"""Seeded splits into training, validation and test frames, kept in a small JSON file.

By group: frames of one molecule are nearly the same, so a test frame whose molecule was
trained on measures memory. With a single molecule there is no choice but by frame.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpot.data.formats.common import replacing
from mlpot.data.record import Record
from mlpot.errors import DataError, InputError

FORMAT = 1
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Indices into the records it was made from; ascending, disjoint."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    seed: int
    by: str  # "group" or "frame"
    frames: int  # of the data set
    sha256: str  # of the data set, see fingerprint()


def make_split(
    records: Sequence[Record],
    validation: float = 0.1,
    test: float = 0.1,
    train: float | None = None,
    seed: int = 0,
    by: str = "group",
) -> Split:
    """Split records; the same arguments give the same split on every platform.

    Whole groups are dealt in random order, validation first, then test, then training. A part
    ends where its size is closest to what was asked for, and has at least one group unless
    nothing was asked for.

    Args:
        records: the data set.
        validation: a fraction below 1 (float) or a number of frames (int).
        test: the same.
        train: the same; None takes all the rest.
        seed: of the order.
        by: "group", or "frame". With only one group, frames are split in either case.

    Raises:
        InputError: an option out of range.
        DataError: fewer groups or frames than asked for.
    """
    if by not in ("group", "frame"):
        raise InputError(f"by must be 'group' or 'frame', got {by!r}")
    n = len(records)
    if n == 0:
        raise DataError("there are no frames to split. Check the path, and any filter")
    names: dict[str, int] = {}
    owner = np.array([names.setdefault(r.group, len(names)) for r in records], dtype=np.int64)
    if by == "frame" or len(names) <= 1:
        by, owner = "frame", np.arange(n)
    wanted = {"validation": validation, "test": test, "train": train}
    targets = {part: _target(part, value, n) for part, value in wanted.items()}
    if sum(targets.values()) > n:
        raise DataError(
            f"{sum(targets.values())} frames are asked for, but there are {n}. Ask for fewer"
        )
    sizes = np.bincount(owner)
    parts = _deal(sizes, targets, train is None, seed, by)
    members = {p: np.flatnonzero(np.isin(owner, groups)) for p, groups in parts.items()}
    return Split(**members, seed=seed, by=by, frames=n, sha256=fingerprint(records))


def split_held_out(records: Sequence[Record], path: str | Path) -> Split:
    """The split that a file of molecules prescribes, whatever else the data hold.

    Args:
        path: JSON with two lists of groups, "validation" and "test"; the rest is trained on, but
            for those of a third list, "left_out", which may be absent.

    Raises:
        DataError: no such file, or a part of the split would be empty.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        wanted = {part: set(stored[part]) for part in ("validation", "test")}
        unused = set(stored.get("left_out", ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no list of held-out molecules ({type(error).__name__}: {error}); it needs "
            'the keys "validation" and "test", each a list of groups'
        ) from error
    groups = np.array([r.group for r in records], dtype=object)
    parts = {p: np.flatnonzero([g in names for g in groups]) for p, names in wanted.items()}
    others = np.flatnonzero([g not in unused for g in groups])
    parts["train"] = np.setdiff1d(others, np.concatenate(list(parts.values())))
    empty = [p for p in _PARTS if wanted.get(p, True) and not len(parts[p])]
    if empty:
        raise DataError(f"{path} leaves the part {empty[0]} without frames; are these its data?")
    return Split(**parts, seed=0, by="group", frames=len(records), sha256=fingerprint(records))


def fingerprint(records: Sequence[Record]) -> str:
    """sha256 of the atomic numbers, positions and energies of all frames, in order."""
    digest = hashlib.sha256()
    sizes = np.array([len(r.numbers) for r in records], dtype="<i8")
    energies = np.array([np.nan if r.energy is None else r.energy for r in records], dtype="<f8")
    digest.update(sizes.tobytes())
    for record in records:
        digest.update(np.asarray(record.numbers, dtype="<i8").tobytes())
        digest.update(np.asarray(record.positions, dtype="<f4").tobytes())
    digest.update(energies.tobytes())
    return digest.hexdigest()


def save_split(split: Split, path: str | Path) -> None:
    """Write the split as JSON, one line for each entry."""
    entries: dict[str, Any] = {
        "format": FORMAT,
        "seed": split.seed,
        "by": split.by,
        "counts": {part: len(getattr(split, part)) for part in _PARTS},
        "dataset": {"frames": split.frames, "sha256": split.sha256},
        **{part: getattr(split, part).tolist() for part in _PARTS},
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items()]
    with replacing(Path(path)) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def load_split(path: str | Path, records: Sequence[Record]) -> Split:
    """Read a split and make sure that it belongs to these records.

    Raises:
        DataError: absent or damaged file, indices out of range or in two parts, or another
            data set than the split was made from.
    """
    path = Path(path)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise DataError(
                f"{path}: split format {stored['format']}, this version of mlpot reads {FORMAT}. "
                "Make the split again, or use the version that wrote it"
            )
        parts = {part: _indices(stored[part]) for part in _PARTS}
        counts = {part: int(stored["counts"][part]) for part in _PARTS}
        seed, by = int(stored["seed"]), str(stored["by"])
        frames, sha256 = int(stored["dataset"]["frames"]), str(stored["dataset"]["sha256"])
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a split file, or a damaged one ({type(error).__name__}: {error}). "
            "Make the split again"
        ) from error
    _check_parts(path, parts, counts, frames)
    if frames != len(records) or sha256 != fingerprint(records):
        raise DataError(
            f"{path}: made from another data set ({frames} frames, sha256 {sha256[:12]}) than "
            f"these {len(records)} frames. Read the same files in the same order, or make the "
            "split again"
        )
    return Split(**parts, seed=seed, by=by, frames=frames, sha256=sha256)


def _target(part: str, value: float | None, n: int) -> int:
    """Frames that a part should have."""
    if value is None:
        return 0
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        if value < 0:
            raise InputError(f"{part} must not be negative, got {value}")
        return int(value)
    if not 0 <= value < 1:
        raise InputError(
            f"{part} must be a fraction below 1, or a whole number of frames, got {value!r}"
        )
    return max(1, round(value * n)) if value else 0


def _deal(
    sizes: NDArray[np.int64], targets: dict[str, int], rest_to_train: bool, seed: int, by: str
) -> dict[str, list[int]]:
    """Groups of each part. `targets` in the order of dealing, training last."""
    # Raw output of the bit generator, which NumPy guarantees never to change (permutation()
    # carries no such promise).
    order = np.argsort(np.random.PCG64(seed).random_raw(len(sizes)), kind="stable").tolist()
    asked = [p for p in targets if targets[p] or (p == "train" and rest_to_train)]
    if len(order) < len(asked):
        raise DataError(
            f"{len(order)} {by}s cannot be split into {', '.join(asked)}. "
            + ("Split by='frame', or ask" if by == "group" else "Ask")
            + " for fewer parts"
        )
    parts: dict[str, list[int]] = {p: [] for p in _PARTS}
    for i, part in enumerate(asked):
        if part == "train" and rest_to_train:
            parts[part] = order
            break
        owed = len(asked) - i - 1  # every later part needs a group
        taken = 0
        while len(order) > owed:
            size = int(sizes[order[0]])
            if taken and abs(taken + size - targets[part]) >= abs(taken - targets[part]):
                break
            taken += size
            parts[part].append(order.pop(0))
    return parts


def _indices(values: list[int]) -> NDArray[np.int64]:
    if not all(type(v) is int for v in values):
        raise ValueError("an index is not a whole number")
    return np.array(values, dtype=np.int64)


def _check_parts(
    path: Path, parts: dict[str, NDArray[np.int64]], counts: dict[str, int], frames: int
) -> None:
    for part, indices in parts.items():
        if len(indices) != counts[part] or len(np.unique(indices)) != len(indices):
            raise DataError(
                f"{path}: {part} has {len(indices)} indices, some twice or not the "
                f"{counts[part]} that were written. The file was altered; make the split again"
            )
        if len(indices) and (indices.min() < 0 or indices.max() >= frames):
            raise DataError(
                f"{path}: {part} has an index outside 0..{frames - 1}. Make the split again"
            )
    for a, b in combinations(_PARTS, 2):
        if len(np.intersect1d(parts[a], parts[b])):
            raise DataError(
                f"{path}: {a} and {b} share frames, so an error on {b} would say nothing. Make "
                "the split again"
            )
