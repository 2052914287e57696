"""Extended XYZ, plain or gzipped, in ASE's units: eV, eV/Å, Å."""

import gzip
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from mlpot.data.formats.common import checked, reading, replacing
from mlpot.data.record import Record, formula
from mlpot.errors import DataError


def read_extxyz(
    path: str | Path, level: str = "", energy_key: str = "energy", forces_key: str = "forces"
) -> list[Record]:
    """Read an extended XYZ file (eV, eV/Å, Å).

    The group is the frame's `group` or `smiles` where its comment line has one, else the
    chemical formula; `subset` is its `subset` or `config_type`. A lattice with pbc="F F F" is
    not periodic; a lattice without pbc is periodic, as in ASE.

    Args:
        path: .xyz, .extxyz, or either with .gz.
        level: level of theory, where the frames do not say.
        energy_key: name of the energy (eV) in the comment line.
        forces_key: name of the force columns (eV/Å).

    Raises:
        DataError: absent, truncated or damaged file, or unusable numbers.
    """
    path = Path(path)
    with reading(path, "extended XYZ"):
        content = _text(path)
        if not content.strip():
            raise DataError("the file is empty. Download or write it again")
        if not content.endswith("\n"):
            # A cut within the last number cannot be told otherwise.
            raise DataError(
                "the last line does not end: the file is truncated. Download or write it "
                "again; if it is complete, add a line break"
            )
        return checked([_record(a, level, energy_key, forces_key) for a in _frames(content)])


def read_info(path: str | Path, name: str) -> list[float]:
    """A number of each frame's comment line, [frames], NaN where it has none; [] if none has it.

    Raises:
        DataError: as for `read_extxyz`, or it is no number.
    """
    path = Path(path)
    with reading(path, "extended XYZ"):
        content = _text(path)
        if name not in content:  # ASE would take as long as for reading the frames
            return []
        return [float(atoms.info.get(name, "nan")) for atoms in _frames(content)]


def write_extxyz(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as extended XYZ (positions and forces to 1e-8); .gz in the name compresses.

    Group, subset, level and charge go to the comment line, where `read_extxyz` finds them.
    """
    path = Path(path)
    frames = [_atoms(r) for r in records]
    with replacing(path) as temporary:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(temporary, "wt", encoding="utf-8") as file:
            ase.io.write(file, frames, format="extxyz")


def _frames(content: str) -> list[Atoms]:
    # From memory: ASE seeks between frames, which takes minutes in a gzipped file.
    frames: Any = ase.io.read(StringIO(content), index=":", format="extxyz")
    return frames


def _text(path: Path) -> str:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return file.read()


def _record(atoms: Atoms, level: str, energy_key: str, forces_key: str) -> Record:
    # ASE moves the labels with standard names into a calculator and leaves the others in place.
    results: dict[str, Any] = atoms.calc.results if atoms.calc else {}
    info: dict[str, Any] = atoms.info
    energy = results.get(energy_key, info.get(energy_key))
    forces = results.get(forces_key, atoms.arrays.get(forces_key))
    numbers = atoms.numbers.astype(np.int64)
    periodic = bool(atoms.pbc.any())
    x, y, z = (bool(p) for p in atoms.pbc)
    return Record(
        numbers=numbers,
        positions=atoms.positions,
        energy=None if energy is None else float(energy),
        forces=None if forces is None else np.asarray(forces, dtype=np.float64),
        cell=np.array(atoms.cell) if periodic else None,
        pbc=(x, y, z),
        charge=round(info.get("charge", info.get("total_charge", 0))),
        group=_word(info.get("group", info.get("smiles", ""))) or formula(numbers),
        subset=_word(info.get("subset", info.get("config_type", ""))),
        level=_word(info.get("level", "")) or level,
    )


def _word(value: Any) -> str:
    """The text of a comment-line value: ASE reads the SMILES of HF, `F`, as False."""
    if isinstance(value, list | np.ndarray):
        return " ".join(_word(v) for v in value)
    if isinstance(value, bool | np.bool_):
        return "T" if value else "F"
    return str(value)


def _atoms(record: Record) -> Atoms:
    atoms = Atoms(record.numbers, record.positions, cell=record.cell, pbc=record.pbc)
    for name in ("group", "subset", "level", "charge"):
        if value := getattr(record, name):
            # A backslash is an escape when ASE reads, and a bond direction in SMILES.
            escaped = value.replace("\\", "\\\\") if isinstance(value, str) else value
            atoms.info[name] = escaped
    labels = {"energy": record.energy, "forces": record.forces}
    labels = {name: value for name, value in labels.items() if value is not None}
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms
