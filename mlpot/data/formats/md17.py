"""MD17-like npz files: one molecule, arrays of all frames. sGDML, MD17, rMD17, QM-22.

These sets are in kcal/mol and Å unless the file says otherwise (`e_unit`, `r_unit` of sGDML;
`units` of QM-22).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlpot import units as u
from mlpot.data.formats.common import checked, reading, text, want_shape
from mlpot.data.record import Record, formula
from mlpot.errors import DataError

_ENERGY = {
    "ev": 1.0,
    "kcal/mol": u.KCAL_PER_MOL_TO_EV,
    "kj/mol": u.KJ_PER_MOL_TO_EV,
    "hartree": u.HARTREE_TO_EV,
}
_LENGTH = {"ang": 1.0, "angstrom": 1.0, "bohr": u.BOHR_TO_ANGSTROM}

# Names in MD17, sGDML and QM-22; names in rMD17.
_NAMES = {
    "R": ("R", "coords"),
    "z": ("z", "nuclear_charges"),
    "E": ("E", "energies"),
    "F": ("F", "forces"),
    "level": ("theory", "lot"),
}


def read_md17(path: str | Path, units: str | None = None, level: str = "") -> list[Record]:
    """Read an npz file of one molecule: `R` [F, N, 3], `z` [N], `E` [F] or [F, 1], `F` [F, N, 3].

    The group is the chemical formula, the subset the file's `name`, the level its `theory`.

    Args:
        path: .npz.
        units: of energy, "kcal/mol" (what MD17 uses) or "eV"; lengths are in Å. Needed only
            where the file is in eV and does not say so.
        level: level of theory, where the file does not say.

    Raises:
        DataError: absent, truncated or damaged file; units that are unknown or contradict the
            file's own; unusable numbers.
    """
    path = Path(path)
    with reading(path, "an MD17 npz"), np.load(path, allow_pickle=False) as file:
        numbers = _get(file, "z").astype(np.int64)
        raw = _get(file, "R")
        n, atoms = raw.shape[0], len(numbers)
        want_shape("R", raw, (n, atoms, 3))
        energy_unit, length_unit = _units(file, units)
        positions = raw * length_unit
        energies = forces = None
        if _has(file, "E"):
            energies = _get(file, "E").reshape(-1).astype(np.float64) * energy_unit
            want_shape("E", energies, (n,))
        if _has(file, "F"):
            forces = _get(file, "F") * (energy_unit / length_unit)
            want_shape("F", forces, (n, atoms, 3))
        group = formula(numbers)
        subset = text(file["name"]) if "name" in file else ""
        level = text(_get(file, "level")) if _has(file, "level") else level
        return checked(
            [
                Record(
                    numbers=numbers,
                    positions=positions[i],
                    energy=None if energies is None else float(energies[i]),
                    forces=None if forces is None else forces[i],
                    group=group,
                    subset=subset,
                    level=level,
                )
                for i in range(n)
            ]
        )


def _has(file: np.lib.npyio.NpzFile, key: str) -> bool:
    return any(name in file for name in _NAMES[key])


def _get(file: np.lib.npyio.NpzFile, key: str) -> NDArray:
    for name in _NAMES[key]:
        if name in file:
            return file[name]
    raise DataError(
        f"there is no array {' or '.join(_NAMES[key])}: this is not an MD17 file. It holds: "
        f"{', '.join(file.files)}"
    )


def _units(file: np.lib.npyio.NpzFile, wanted: str | None) -> tuple[float, float]:
    """Factors to eV and Å, from the file where it tells, else from the caller."""
    stated = length = None
    if "units" in file:  # QM-22: "eV, Angstrom, eV/Angstrom"
        stated, length, *force = (part.strip() for part in text(file["units"]).split(","))
        if force and force[0].lower() != f"{stated}/{length}".lower():
            raise DataError(
                f"its forces are in {force[0]}, not in {stated}/{length}. Convert them first"
            )
    if "e_unit" in file:
        stated = text(file["e_unit"])
    if "r_unit" in file:
        length = text(file["r_unit"])
    if stated and wanted and stated.lower() != wanted.lower():
        raise DataError(f"it says that it is in {stated}, not in {wanted}. Leave out units=")
    return (
        _factor(_ENERGY, "energy", stated or wanted or "kcal/mol"),
        _factor(_LENGTH, "length", length or "Angstrom"),
    )


def _factor(table: dict[str, float], what: str, unit: str) -> float:
    if unit.lower() not in table:
        raise DataError(
            f"unknown {what} unit '{unit}'. Known: {', '.join(table)}; convert the file first"
        )
    return table[unit.lower()]
