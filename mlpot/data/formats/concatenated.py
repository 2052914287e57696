"""Concatenated frames: HDF5 arrays of all atoms of all frames, already in eV and Å.

`offset` [frames + 1] cuts `atomic_numbers`, `positions` and `forces`; `molecule` [frames]
points into `smiles` and `subset`. Fast for molecules of many sizes.
"""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from mlpot.data.formats.common import checked, formal_charge, reading, text, want_shape
from mlpot.data.record import Record
from mlpot.errors import DataError


def read_concatenated(path: str | Path, level: str = "") -> list[Record]:
    """Read concatenated frames (Å, eV, eV/Å). The group is the SMILES.

    Args:
        path: .h5 or .hdf5.
        level: level of theory, where the file has no attribute `level`.

    Returns:
        Records that are views into one array for each field.

    Raises:
        DataError: absent, truncated or damaged file, or unusable numbers.
    """
    path = Path(path)
    with reading(path, "concatenated HDF5"):
        with h5py.File(path, "r") as file:
            level = text(file.attrs.get("level", level))
            offset = file["offset"][:]
            molecule = file["molecule"][:].tolist()
            numbers = file["atomic_numbers"][:].astype(np.int64)
            positions = file["positions"][:]
            forces = file["forces"][:]
            energy = file["energy"][:].tolist()
            smiles = file["smiles"].asstr()[:].tolist()
            subset = file["subset"].asstr()[:].tolist()
        n = len(offset) - 1
        _check_layout(offset, molecule, len(smiles), numbers)
        want_shape("positions", positions, (len(numbers), 3))
        want_shape("forces", forces, (len(numbers), 3))
        for name, array, length in (
            ("molecule", molecule, n),
            ("energy", energy, n),
            ("subset", subset, len(smiles)),
        ):
            want_shape(name, np.asarray(array), (length,))
        charge = [formal_charge(s) for s in smiles]
        bounds = offset.tolist()
        return checked(
            [
                Record(
                    numbers=numbers[start:stop],
                    positions=positions[start:stop],
                    energy=e,
                    forces=forces[start:stop],
                    charge=charge[m],
                    group=smiles[m],
                    subset=subset[m],
                    level=level,
                )
                for start, stop, m, e in zip(bounds, bounds[1:], molecule, energy, strict=False)
            ]
        )


def _check_layout(
    offset: NDArray, molecule: list[int], molecules: int, numbers: NDArray[np.int64]
) -> None:
    if len(offset) < 2 or offset[0] != 0 or offset[-1] != len(numbers) or np.diff(offset).min() < 0:
        raise DataError(
            f"'offset' must ascend from 0 to the number of atoms ({len(numbers)}): the file is "
            "truncated. Write it again"
        )
    if molecule and not 0 <= min(molecule) <= max(molecule) < molecules:
        raise DataError(
            f"'molecule' must lie in 0..{molecules - 1}: the file is damaged. Write it again"
        )
