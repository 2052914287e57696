"""The systems that everything is timed on. Geometries are stored; `make_systems` made them."""

from pathlib import Path
from typing import NamedTuple

from ase import Atoms
from ase.io import read

FOLDER = Path(__file__).parent / "systems"
WATER = "water-300"


class System(NamedTuple):
    """What a system is, and how it is made: SMILES, sequence, or a repeated box of 100 waters."""

    atoms: int
    what: str
    smiles: str = ""
    sequence: str = ""
    repeat: tuple[int, int, int] | None = None


SYSTEMS = {
    "ethanol": System(9, "ethanol", "CCO"),
    "aspirin": System(21, "aspirin", "CC(=O)Oc1ccccc1C(=O)O"),
    "alanine-dipeptide": System(22, "alanine dipeptide", "CC(=O)N[C@@H](C)C(=O)NC"),
    "imatinib": System(
        68, "imatinib", "Cc1ccc(cc1Nc1nccc(n1)-c1cccnc1)NC(=O)c1ccc(cc1)CN1CCN(C)CC1"
    ),
    "peptide": System(140, "chignolin's sequence, neutral", sequence="GYDPETGTWG"),
    "water-300": System(300, "100 water molecules, periodic", repeat=(1, 1, 1)),
    "water-1500": System(1500, "500 water molecules, periodic", repeat=(5, 1, 1)),
    "water-6000": System(6000, "2,000 water molecules, periodic", repeat=(5, 2, 2)),
}


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.xyz"


def load(name: str) -> Atoms:
    """Positions in Å, with cell and pbc. Larger boxes of water repeat the stored one."""
    repeat = SYSTEMS[name].repeat
    atoms = read(path_of(WATER if repeat else name), index=0, format="extxyz")
    assert isinstance(atoms, Atoms)
    return atoms.repeat(repeat) if repeat else atoms
