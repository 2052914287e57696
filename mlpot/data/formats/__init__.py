"""Read labelled structures, whatever their format; each module converts one format's units."""

import inspect
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from mlpot.data.formats.common import reading
from mlpot.data.formats.concatenated import read_concatenated
from mlpot.data.formats.extxyz import read_extxyz
from mlpot.data.formats.md17 import read_md17
from mlpot.data.formats.spice import read_spice
from mlpot.data.record import Record
from mlpot.errors import DataError

_XYZ = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz")
_HDF5 = (".h5", ".hdf5")


class _Format(NamedTuple):
    name: str
    suffixes: tuple[str, ...]
    holds: frozenset[str]  # names of arrays that tell it from others with the same suffix
    reader: Callable[..., list[Record]]


_FORMATS = (
    _Format("extended XYZ", _XYZ, frozenset(), read_extxyz),
    _Format("MD17, sGDML or QM-22", (".npz",), frozenset({"R", "z"}), read_md17),
    _Format("rMD17", (".npz",), frozenset({"coords", "nuclear_charges"}), read_md17),
    _Format("concatenated frames", _HDF5, frozenset({"offset", "positions"}), read_concatenated),
    _Format("SPICE", _HDF5, frozenset({"conformations", "atomic_numbers"}), read_spice),
)


def read(path: str | Path, **options: str) -> list[Record]:
    """Read a file of labelled structures; the format follows from suffix and content.

    Args:
        path: the file.
        options: for the format's own reader: `level` (level of theory, where the file does
            not say) for all; `units` for npz; `energy_key`, `forces_key` for extended XYZ.

    Returns:
        Records in the order of the file, in eV and Å.

    Raises:
        DataError: the file is absent, of no supported format, truncated, or holds unusable
            numbers; the message names the file.
    """
    path = Path(path)
    candidates = [f for f in _FORMATS if path.name.lower().endswith(f.suffixes)]
    if not candidates:
        raise DataError(f"{path}: the suffix is not one of a supported format. {_supported()}")
    with reading(path, candidates[0].suffixes[0]):
        names = _content(path) if any(f.holds for f in candidates) else set()
    for candidate in candidates:
        if candidate.holds <= names:
            _check_options(candidate, options)
            return candidate.reader(path, **options)
    raise DataError(
        f"{path}: it holds {', '.join(sorted(names)[:12]) or 'nothing'}, which fits no supported "
        f"format. {_supported()}"
    )


def read_all(paths: Iterable[str | Path], **options: str) -> list[Record]:
    """The records of several files, in the order given; options go to the reader of each.

    Raises:
        DataError: no files, or what `read` raises.
    """
    paths = list(paths)
    if not paths:
        raise DataError(f"no files to read. {_supported()}")
    return [record for path in paths for record in read(path, **options)]


def _content(path: Path) -> set[str]:
    """Names of the arrays in an npz file, or at the top and in the first group of an HDF5 one."""
    if path.suffix.lower() == ".npz":
        if not zipfile.is_zipfile(path):
            raise DataError("not an npz file, or a truncated one. Download or write it again")
        with np.load(path, allow_pickle=False) as file:
            return set(file.files)
    with h5py.File(path, "r") as file:
        first = next(iter(file.values()), None)
        return set(file) | (set(first) if isinstance(first, h5py.Group) else set())


def _check_options(chosen: _Format, options: dict[str, Any]) -> None:
    known = [name for name in inspect.signature(chosen.reader).parameters if name != "path"]
    for name in options:
        if name not in known:
            raise DataError(
                f"the reader of {chosen.name} has no option '{name}'. It has: {', '.join(known)}"
            )


def _supported() -> str:
    rows = []
    for f in _FORMATS:
        content = f" with {', '.join(sorted(f.holds))}" if f.holds else ""
        rows.append(f"{f.name} ({', '.join(f.suffixes)}{content})")
    return "Supported: " + "; ".join(rows)
