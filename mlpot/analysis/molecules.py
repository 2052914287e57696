"""The molecules that a suite runs on: committed lists in extended XYZ, or the user's own."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.io import read
from numpy.typing import NDArray

from mlpot.errors import InputError
from mlpot.md.structure import read_structure

#: for ``mlpot stability`` where nothing else is given; made by benchmarks/stability
DEFAULT = Path(__file__).parent / "molecules.xyz"

#: what a list may hold. standard: what a model should do; large, groups: outside of training;
#: elements: to be refused; reference: with a trajectory to compare with; own: the user's
SETS = ("standard", "large", "groups", "elements", "reference", "own")


@dataclass(frozen=True, eq=False)
class Molecule:
    """A neutral closed-shell molecule without a box, at a sensible geometry.

    Attributes:
        name: of files too: letters, digits, ``-``, ``_``, ``+``.
        set: one of `SETS`.
        numbers: [N] atomic numbers.
        positions: [N, 3] Å; bonds are those of this geometry.
        smiles, source: where it comes from; may be empty.
    """

    name: str
    set: str
    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    smiles: str = ""
    source: str = ""

    @property
    def key(self) -> str:
        """Hash of elements and coordinates (to 1e-6 Å)."""
        content = hashlib.sha256(np.asarray(self.numbers, dtype="<i8").tobytes())
        content.update(np.rint(self.positions * 1e6).astype("<i8").tobytes())
        return content.hexdigest()[:16]


def read_molecules(path: str | Path) -> list[Molecule]:
    """All molecules of an extended XYZ file, or of the XYZ files of a folder.

    The comment line of each has ``name`` and ``set``, and may have ``smiles`` and ``source``.

    Raises:
        InputError: no such file, or a frame that does not say what it is.
    """
    path = Path(path)
    files = sorted(path.glob("*.xyz")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InputError(f"no molecules at {path}. Give an extended XYZ file, or a folder of them")
    found = []
    for file in files:
        for atoms in read(file, index=":", format="extxyz"):
            info = atoms.info
            if "name" not in info or info.get("set") not in SETS:
                raise InputError(
                    f"{file}: a frame has no name=..., or no set=... of {', '.join(SETS)}. Put "
                    "both into its comment line"
                )
            told = (str(info.get(k, "")) for k in ("smiles", "source"))
            z = atoms.numbers.astype(np.int64)
            found.append(Molecule(str(info["name"]), info["set"], z, atoms.positions, *told))
    return unique(found)


def own_molecules(sources: Iterable[str | Path]) -> list[Molecule]:
    """The user's: files (PDB, XYZ, SDF) or SMILES.

    Raises:
        InputError: unreadable; charged, a radical, or without hydrogens.
    """
    found = []
    for source in sources:
        structure = read_structure(source, periodic=False)
        is_file = Path(source).is_file()
        name = Path(source).stem if is_file else structure.formula
        safe = re.sub(r"[^\w+-]", "_", name, flags=re.ASCII)
        smiles = "" if is_file else str(source)
        x, z = structure.positions, structure.numbers
        found.append(Molecule(safe, "own", z, x, smiles, Path(structure.name).name))
    return unique(found)


def unique(molecules: Sequence[Molecule]) -> list[Molecule]:
    """The same with different names: the second of a name gets ``-2``."""
    seen: dict[str, int] = {}
    renamed = []
    for m in molecules:
        seen[m.name] = count = seen.get(m.name, 0) + 1
        name = m.name if count == 1 else f"{m.name}-{count}"
        renamed.append(Molecule(name, m.set, m.numbers, m.positions, m.smiles, m.source))
    return renamed
