"""SPICE's HDF5 layout: one group a molecule, in hartree and bohr, gradients for forces."""

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from mlpot import units as u
from mlpot.data.formats.common import (
    checked,
    formal_charge,
    reading,
    replacing,
    text,
    want_shape,
)
from mlpot.data.record import Record, formula
from mlpot.errors import DataError

_FORCE = u.HARTREE_TO_EV / u.BOHR_TO_ANGSTROM


def read_spice(path: str | Path, level: str = "") -> list[Record]:
    """Read `conformations` (bohr), `dft_total_energy` (hartree), `dft_total_gradient`
    (hartree/bohr, the negative of forces) of every group.

    Records are named by their HDF5 group, with | for /, as SPICE writes SMILES. The charge is
    the sum of formal charges in `smiles`.

    Args:
        path: .h5 or .hdf5.
        level: level of theory, where the file has no attribute `level`.

    Raises:
        DataError: absent, truncated or damaged file, or unusable numbers.
    """
    path = Path(path)
    records: list[Record] = []
    with reading(path, "SPICE HDF5"):
        with h5py.File(path, "r") as file:
            stated = text(file.attrs.get("level", level))
            for name, molecule in file.items():
                if not isinstance(molecule, h5py.Group) or "conformations" not in molecule:
                    raise DataError(
                        f"'{name}' is not a molecule (a group with 'conformations'): this is "
                        "not SPICE's layout"
                    )
                records += _molecule(name.replace("|", "/"), molecule, stated)
        return checked(records)


def _molecule(name: str, molecule: h5py.Group, level: str) -> list[Record]:
    numbers = molecule["atomic_numbers"][:].astype(np.int64)
    positions = molecule["conformations"][:] * u.BOHR_TO_ANGSTROM
    n, shape = len(positions), (len(positions), len(numbers), 3)
    want_shape(f"{name}/conformations", positions, shape)
    energies = forces = None
    if "dft_total_energy" in molecule:
        energies = molecule["dft_total_energy"][:].astype(np.float64) * u.HARTREE_TO_EV
        want_shape(f"{name}/dft_total_energy", energies, (n,))
    if "dft_total_gradient" in molecule:
        forces = molecule["dft_total_gradient"][:] * -_FORCE
        want_shape(f"{name}/dft_total_gradient", forces, shape)
    smiles = text(molecule["smiles"][:]) if "smiles" in molecule else ""
    charge = int(molecule.attrs.get("charge", formal_charge(smiles)))
    subset = text(molecule["subset"][:]) if "subset" in molecule else ""
    return [
        Record(
            numbers=numbers,
            positions=positions[i],
            energy=None if energies is None else float(energies[i]),
            forces=None if forces is None else forces[i],
            charge=charge,
            group=name,
            subset=subset,
            level=level,
        )
        for i in range(n)
    ]


def write_spice(path: str | Path, records: Iterable[Record]) -> None:
    """Write records in SPICE's layout, one HDF5 group for each `group` (or formula).

    Raises:
        DataError: what the layout cannot hold: periodic frames, several levels of theory, or
            a group whose frames differ in atoms, charge, subset or in the labels they have.
    """
    molecules: dict[str, list[Record]] = {}
    for record in records:
        molecules.setdefault(record.group or formula(record.numbers), []).append(record)
    for name, frames in molecules.items():
        kinds = {_kind(r) for r in frames}
        if len(kinds) > 1 or any(any(r.pbc) for r in frames):
            raise DataError(
                f"the frames of '{name}' are periodic, or differ in the order of atoms, charge, "
                "subset or labels, which SPICE's layout cannot hold. Write extended XYZ instead"
            )
    levels = {r.level for frames in molecules.values() for r in frames}
    if len(levels) > 1:
        raise DataError(
            f"SPICE's layout holds one level of theory a file, got {sorted(levels)}. Write one "
            "file for each"
        )
    with replacing(Path(path)) as temporary, h5py.File(temporary, "w", track_order=True) as file:
        if levels:
            file.attrs["level"] = levels.pop()
        for name, frames in molecules.items():
            _write_molecule(file.create_group(name.replace("/", "|")), frames)


def _kind(record: Record) -> tuple:
    labels = (record.energy is None, record.forces is None)
    return (record.numbers.tobytes(), record.charge, record.subset, *labels)


def _write_molecule(molecule: h5py.Group, frames: list[Record]) -> None:
    first = frames[0]
    molecule.attrs["charge"] = first.charge
    molecule["atomic_numbers"] = first.numbers.astype(np.int16)
    molecule["subset"] = np.array([first.subset], dtype=h5py.string_dtype())
    molecule["conformations"] = np.stack([r.positions for r in frames]) / u.BOHR_TO_ANGSTROM
    if first.energy is not None:
        energies = np.array([r.energy for r in frames], dtype=np.float64)
        molecule["dft_total_energy"] = energies / u.HARTREE_TO_EV
    if first.forces is not None:
        forces = np.stack([r.forces for r in frames if r.forces is not None])
        molecule["dft_total_gradient"] = forces / -_FORCE
