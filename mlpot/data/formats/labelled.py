"""Records with further numbers for each frame, in SPICE's HDF5 or extended XYZ."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ase.io
import h5py
import numpy as np
from numpy.typing import NDArray

from mlpot import units as u
from mlpot.data.formats.common import reading, replacing, want_shape
from mlpot.data.formats.extxyz import _atoms, read_info
from mlpot.data.formats.spice import write_spice
from mlpot.data.record import Record, formula
from mlpot.errors import DataError

_XYZ = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz")
_HDF5 = (".h5", ".hdf5")

#: What is known for each frame beyond its Record: name -> [frames], NaN where it is not known.
Extras = Mapping[str, NDArray[np.float64]]

# Their unit in SPICE's layout and the factor to it; in extended XYZ they are in eV, Å and K.
_SPICE_UNITS = {
    "committee_energy_std": ("hartree", 1 / u.HARTREE_TO_EV),
    "committee_force_std": ("hartree/bohr", u.BOHR_TO_ANGSTROM / u.HARTREE_TO_EV),
    "sampling_temperature": ("K", 1.0),
}


def write_labelled(
    path: str | Path, records: Sequence[Record], extras: Extras | None = None
) -> None:
    """Write a file that `mlpot.data.formats.read` reads, in the format of its suffix.

    SPICE's layout (.h5, .hdf5) keeps all digits, and the frames of a molecule together; a group
    whose name is its SMILES gets the dataset `smiles` too. Extended XYZ (.xyz, .extxyz, either
    with .gz) keeps the order, and positions and forces to 1e-8.

    Args:
        path: the file; replaced only when the new one is complete.
        records: frames, in eV and Å.
        extras: `committee_energy_std` (eV), `committee_force_std` (eV/Å),
            `sampling_temperature` (K), each [frames].

    Raises:
        DataError: another suffix, or what SPICE's layout cannot hold (see `write_spice`).
    """
    path, extras = Path(path), extras or {}
    check_suffix(path)
    if path.name.lower().endswith(_XYZ):
        _write_extxyz(path, records, extras)
    else:
        _write_spice(path, records, extras)


def read_extra(path: str | Path, name: str, frames: int) -> NDArray[np.float64]:
    """One of the extras of a file, [frames], in the order of `mlpot.data.formats.read`.

    In eV, eV/Å or K; NaN where a frame has none, and in formats that hold none.

    Args:
        path: a file that could be read.
        name: see `write_labelled`.
        frames: how many the file has.

    Raises:
        DataError: it is there, and not one number for each frame.
    """
    path = Path(path)
    suffix = path.name.lower()
    values: Any = []
    if suffix.endswith(_XYZ):
        values = read_info(path, name)
    elif suffix.endswith(_HDF5):
        with reading(path, "SPICE HDF5"), h5py.File(path, "r") as file:
            values = [v for m in file.values() if _has_frames(m) for v in _extra(m, name)]
    return np.array(values, dtype=np.float64) if values else np.full(frames, np.nan)


def _has_frames(molecule: Any) -> bool:
    return isinstance(molecule, h5py.Group) and "conformations" in molecule


def _extra(molecule: h5py.Group, name: str) -> NDArray[np.float64]:
    n = len(molecule["conformations"])
    if name not in molecule:
        return np.full(n, np.nan)
    want_shape(f"{molecule.name}/{name}", molecule[name], (n,))
    return molecule[name][:].astype(np.float64) / _SPICE_UNITS[name][1]


def check_suffix(path: Path) -> None:
    """Raise a DataError unless the suffix is of a format that can be written."""
    if not path.name.lower().endswith((*_XYZ, *_HDF5)):
        raise DataError(
            f"{path}: the suffix is of no format that mlpot writes. Take {_HDF5[0]} (SPICE's "
            f"layout) or one of {', '.join(_XYZ)}"
        )


def check_writable(path: Path, records: Sequence[Record]) -> None:
    """Raise before an expensive calculation what `write_labelled` would raise after it."""
    check_suffix(path)
    with TemporaryDirectory() as folder:
        write_labelled(Path(folder) / path.name, records)


def _write_extxyz(path: Path, records: Sequence[Record], extras: Extras) -> None:
    frames = [_atoms(record) for record in records]
    for name, values in extras.items():
        for atoms, value in zip(frames, values, strict=True):
            if np.isfinite(value):
                atoms.info[name] = float(value)
    with replacing(path) as temporary:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(temporary, "wt", encoding="utf-8") as file:
            ase.io.write(file, frames, format="extxyz")


def _write_spice(path: Path, records: Sequence[Record], extras: Extras) -> None:
    frames: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        frames.setdefault(record.group or formula(record.numbers), []).append(i)
    with replacing(path) as temporary:
        write_spice(temporary, records)
        with h5py.File(temporary, "r+") as file:
            for name, indices in frames.items():
                molecule = file[name.replace("/", "|")]
                if _is_smiles(name, records[indices[0]]):
                    molecule["smiles"] = np.array([name], dtype=h5py.string_dtype())
                for key, values in extras.items():
                    unit, factor = _SPICE_UNITS[key]
                    if np.isfinite(values[indices]).any():
                        molecule[key] = values[indices] * factor
                        molecule[key].attrs["units"] = unit


def _is_smiles(name: str, record: Record) -> bool:
    """Whether the name of the group is a SMILES of the atoms, and not a formula or a word."""
    try:
        from rdkit import Chem, rdBase
    except ImportError:  # without it, files of conformers cannot have been made
        return False
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(name)
    if molecule is None:
        return False
    numbers = [atom.GetAtomicNum() for atom in Chem.AddHs(molecule).GetAtoms()]
    return sorted(numbers) == sorted(record.numbers.tolist())
