"""What several formats share: errors that name the file, whole-file writes, charges of SMILES."""

import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpot.data.record import Record, check_records
from mlpot.errors import DataError

# What the libraries below us raise on a file that is truncated, altered or of another kind.
_UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)

_ATOM_CHARGE = re.compile(r"\[[^\]:]*?([+-]+)(\d*)(?::\d+)?\]")


@contextmanager
def reading(path: Path, layout: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into a DataError that names it."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check the path; it is relative to {Path.cwd()}")
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except _UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read as {layout} ({type(error).__name__}: {error}): the file is "
            "truncated, damaged or in another format. Compare its size or checksum with the "
            "source's and download or write it again"
        ) from error


def checked(records: list[Record]) -> list[Record]:
    """The records, if every number in them is usable; labels may be absent."""
    check_records(records, need_energy=False, need_forces=False, allow_charged=True)
    return records


def want_shape(name: str, array: NDArray, shape: tuple[int, ...]) -> None:
    """Raise a DataError unless the array has the shape."""
    if array.shape != shape:
        raise DataError(
            f"'{name}' must have shape {list(shape)}, got {list(array.shape)}: the file is "
            "damaged or in another layout. Write it again"
        )


def text(value: Any) -> str:
    """A string from what HDF5 and npz files hold: bytes, str or arrays with one of them."""
    value = np.asarray(value).ravel()[0]
    return value.decode() if isinstance(value, bytes) else str(value)


def formal_charge(smiles: str) -> int:
    """Sum of the formal charges in a SMILES; they stand in brackets only."""
    total = 0
    for signs, digits in _ATOM_CHARGE.findall(smiles):
        total += (1 if signs[0] == "+" else -1) * (int(digits) if digits else len(signs))
    return total


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, renamed at the end: nobody meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
