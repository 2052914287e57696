"""Whatever a user has (PDB, XYZ, SDF, SMILES) as one `Structure` that both hosts can run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.formula import Formula
from numpy.typing import NDArray
from openmm import Vec3, app, unit

from mlpot.errors import InputError, UnsupportedSystemError, require
from mlpot.units import ANGSTROM_TO_NM

_HALOGENS = {9, 17, 35, 53}


#: Å between the molecules of a SMILES with several, surface to surface
BETWEEN = 2.5


@dataclass(frozen=True)
class Structure:
    """A system ready to be simulated: neutral, closed shell, hydrogens in place.

    Attributes:
        topology: OpenMM topology; it carries the box too.
        positions: [N, 3] Å.
        numbers: [N] atomic numbers.
        box: [3, 3] Å, rows are lattice vectors in OpenMM's reduced form; None if not periodic.
        name: file name or SMILES.
        notes: what was assumed while reading; a user should see it.
    """

    topology: app.Topology
    positions: NDArray[np.float64]
    numbers: NDArray[np.int64]
    box: NDArray[np.float64] | None
    name: str
    notes: tuple[str, ...] = ()

    @property
    def masses(self) -> NDArray[np.float64]:
        """[N] amu"""
        return np.array([a.element.mass.value_in_unit(unit.dalton) for a in self.topology.atoms()])

    @property
    def formula(self) -> str:
        """Hill order, as in C6H12N2O2."""
        symbols = [a.element.symbol for a in self.topology.atoms()]
        return Formula.from_list(symbols).format("hill")


def read_structure(source: str | Path, *, periodic: bool = True, seed: int = 0) -> Structure:
    """Read a structure file, or build a molecule from SMILES.

    Args:
        source: a ``.pdb``, ``.xyz``, ``.extxyz``, ``.sdf`` or ``.mol`` file, or a SMILES string.
        periodic: keep the box of the file; False ignores it.
        seed: of the conformer made for SMILES and for flat SDF files.

    Raises:
        InputError: no such file, unreadable, or no valid SMILES.
        UnsupportedSystemError: charged, a radical, or without its hydrogens.
        MissingDependencyError: SMILES, SDF and MOL need RDKit.
    """
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader and path.is_file():
        try:
            structure = reader(path, periodic, seed)
        except InputError:
            raise
        except Exception as error:  # the parsers raise whatever they stumble over
            detail = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"{path} cannot be read as {path.suffix[1:].upper()}: {detail[0]}. Check that the "
                "file is complete and of the format that its suffix says"
            ) from error
    elif reader:
        raise InputError(f"no such file: {path}. Check the path")
    elif path.is_file():
        raise InputError(
            f"{path}: the suffix {path.suffix!r} is not a structure format that mlpot reads "
            f"({', '.join(_READERS)}). Convert it, with Open Babel for instance"
        )
    else:
        structure = _from_smiles(str(source), seed)
    return _checked(structure)


# --- one reader a format -----------------------------------------------------------------------


def _from_pdb(path: Path, periodic: bool, seed: int) -> Structure:
    pdb = app.PDBFile(str(path))
    topology, notes = pdb.topology, []
    if pdb.getNumFrames() > 1:
        notes.append(f"{path.name} holds {pdb.getNumFrames()} models; taking the first")
    missing = [a for a in topology.atoms() if a.element is None]
    if missing:
        raise InputError(
            f"{path}: the element of atom {missing[0].name!r} (number {missing[0].index + 1}) is "
            "unknown. Fill in columns 77-78 of its line, and remove dummy atoms"
        )
    charge = sum(a.formalCharge or 0 for a in topology.atoms())
    if charge:
        raise UnsupportedSystemError(_charged(str(path), charge))
    positions = pdb.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    numbers = _numbers(topology)
    if not (numbers == 1).any() and (numbers == 6).sum() > 1 and not _HALOGENS & set(numbers):
        raise UnsupportedSystemError(
            f"{path} holds no hydrogen atoms, as experimental structures often do, and the model "
            "needs all of them. Add them first: `pdbfixer in.pdb --add-atoms=hydrogen`, or "
            "openmm.app.Modeller.addHydrogens"
        )
    box = topology.getPeriodicBoxVectors()
    if box is not None:
        box = np.array(box.value_in_unit(unit.angstrom), dtype=np.float64)
        # Programs that must write a CRYST1 line for an isolated molecule write a 1 Å cube.
        if not periodic or np.linalg.norm(box, axis=1).max() < 1.5:
            box = None
    topology.setPeriodicBoxVectors(None if box is None else _vectors(box))
    return Structure(topology, np.asarray(positions), numbers, box, path.name, tuple(notes))


def _from_xyz(path: Path, periodic: bool, seed: int) -> Structure:
    from ase.io import read

    frames = read(path, index=":", format="extxyz")
    if not frames:
        raise InputError(f"{path} holds no frames. Check that the file is complete")
    atoms: Any = frames[0]
    notes: tuple[str, ...] = ()
    if len(frames) > 1:
        notes = (f"{path.name} holds {len(frames)} frames; taking the first",)
    charge = float(atoms.info.get("charge", atoms.get_initial_charges().sum()))
    if abs(charge) > 1e-3:
        raise UnsupportedSystemError(_charged(str(path), charge))
    positions, box = atoms.positions, None
    if periodic and any(atoms.pbc):
        if not all(atoms.pbc):
            raise UnsupportedSystemError(
                f"{path} is periodic along {tuple(bool(p) for p in atoms.pbc)}, and MD runs "
                "with all directions periodic or none. Set pbc in the file, or use --no-pbc"
            )
        # OpenMM wants lower triangular boxes: turn the cell, and the atoms with it.
        cell, rotation = atoms.cell.standard_form()
        positions, box = positions @ rotation.T, _reduced(cell.array)
    topology = _topology(atoms.numbers.tolist(), [], box)
    return Structure(topology, positions, _numbers(topology), box, path.name, notes)


def _from_sdf(path: Path, periodic: bool, seed: int) -> Structure:
    chem = require("rdkit.Chem", "mlpot[chem]", f"reading {path.name}")
    with _quiet():
        molecules = list(chem.SDMolSupplier(str(path), removeHs=False))
    if not molecules or molecules[0] is None:
        raise InputError(
            f"{path} holds no molecule that RDKit can read. Check that the file is complete and "
            "its valences are right"
        )
    molecule, notes = molecules[0], []
    if len(molecules) > 1:
        notes.append(f"{path.name} holds {len(molecules)} molecules; taking the first")
    flat = not molecule.GetNumConformers() or not molecule.GetConformer().Is3D()
    missing = chem.AddHs(molecule).GetNumAtoms() - molecule.GetNumAtoms()
    if missing:
        notes.append(f"{missing} hydrogens were missing in {path.name} and have been added")
        molecule = chem.AddHs(molecule, addCoords=not flat)
    if flat:
        notes.append(f"{path.name} has no 3D coordinates; a conformer has been generated")
        molecule = _embedded(molecule, path.name, seed)
    return _from_rdkit(molecule, path.name, tuple(notes))


def _from_smiles(smiles: str, seed: int) -> Structure:
    chem = require("rdkit.Chem", "mlpot[chem]", f"reading {smiles!r} as SMILES (no such file)")
    with _quiet():
        molecule = chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        raise InputError(
            f"{smiles!r} is neither a file nor a valid SMILES string. Check the spelling; "
            f"files end in {', '.join(_READERS)}, and SMILES need quotes in a shell"
        )
    return _from_rdkit(_embedded(chem.AddHs(molecule), smiles, seed), smiles)


_READERS: dict[str, Callable[[Path, bool, int], Structure]] = {
    ".pdb": _from_pdb,
    ".xyz": _from_xyz,
    ".extxyz": _from_xyz,
    ".sdf": _from_sdf,
    ".mol": _from_sdf,
}


# --- RDKit ---------------------------------------------------------------------------------------


def _embedded(molecule: Any, name: str, seed: int) -> Any:
    """The molecule with one conformer: distance geometry, then a force field.

    RDKit may put the parts of 'O.O' on top of each other, so each is built alone, and they are
    set side by side.
    """
    embed = require("rdkit.Chem.AllChem", "mlpot[chem]", "building 3D coordinates")
    chem = require("rdkit.Chem", "mlpot[chem]", "building 3D coordinates")
    parts = chem.GetMolFrags(molecule, asMols=True)
    if len(parts) > 1:
        joined, reach = None, 0.0
        for part in parts:
            part = _embedded(part, name, seed)
            x = part.GetConformer().GetPositions()[:, 0]
            offset = chem.rdGeometry.Point3D(reach - float(x.min()), 0.0, 0.0)
            joined = part if joined is None else chem.CombineMols(joined, part, offset)
            reach += float(np.ptp(x)) + BETWEEN
        return joined
    with _quiet():
        if embed.EmbedMolecule(molecule, randomSeed=seed + 1) != 0:
            raise InputError(
                f"RDKit finds no 3D coordinates for {name!r}. Check its stereochemistry, or give "
                "a file with coordinates"
            )
        if embed.MMFFHasAllMoleculeParams(molecule):
            embed.MMFFOptimizeMolecule(molecule, maxIters=2000)
        elif embed.UFFHasAllMoleculeParams(molecule):
            embed.UFFOptimizeMolecule(molecule, maxIters=2000)
    return molecule


def _from_rdkit(molecule: Any, name: str, notes: tuple[str, ...] = ()) -> Structure:
    atoms = list(molecule.GetAtoms())
    charge = sum(a.GetFormalCharge() for a in atoms)
    if charge:
        raise UnsupportedSystemError(_charged(name, charge))
    if any(a.GetNumRadicalElectrons() for a in atoms):
        raise UnsupportedSystemError(
            f"{name} has unpaired electrons, and models cover closed-shell molecules only. "
            "Check that no hydrogen is missing"
        )
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()]
    topology = _topology([a.GetAtomicNum() for a in atoms], bonds, None)
    positions = np.array(molecule.GetConformer().GetPositions(), dtype=np.float64)
    return Structure(topology, positions, _numbers(topology), None, name, notes)


def _quiet() -> Any:
    """RDKit prints its complaints; ours say the same with a remedy."""
    return require("rdkit.rdBase", "mlpot[chem]", "reading molecules").BlockLogs()


# --- shared --------------------------------------------------------------------------------------


def _checked(structure: Structure) -> Structure:
    """What no model covers, whatever format it came in."""
    if not len(structure.numbers):
        raise InputError(f"{structure.name} holds no atoms. Check that the file is complete")
    if not np.isfinite(structure.positions).all():
        bad = int((~np.isfinite(structure.positions)).any(axis=1).argmax())
        raise InputError(
            f"{structure.name}: atom {bad} has a NaN or infinite coordinate. The file is damaged, "
            "or comes from a simulation that broke; start from a finite geometry"
        )
    electrons = int(structure.numbers.sum())
    if electrons % 2:
        raise UnsupportedSystemError(
            f"{structure.name} ({structure.formula}) has an odd number of electrons "
            f"({electrons}) when neutral: it is an ion or a radical, or a hydrogen is missing. "
            "Models cover neutral closed-shell systems only"
        )
    return structure


def _charged(name: str, charge: float) -> str:
    return (
        f"{name} has a total charge of {charge:+g}, and models cover neutral systems only. Use "
        "the neutral form (add or remove protons), or add counter-ions that the model covers"
    )


def _numbers(topology: app.Topology) -> NDArray[np.int64]:
    return np.array([a.element.atomic_number for a in topology.atoms()], dtype=np.int64)


def _topology(
    numbers: list[int], bonds: list[tuple[int, int]], box: NDArray | None
) -> app.Topology:
    """One residue of atoms named C1, C2, H1, ..."""
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain("A"))
    seen: dict[str, int] = {}
    for number in numbers:
        if number < 1:
            raise InputError("a dummy atom (X) is no element. Remove it from the structure")
        element = app.Element.getByAtomicNumber(number)
        seen[element.symbol] = seen.get(element.symbol, 0) + 1
        topology.addAtom(f"{element.symbol}{seen[element.symbol]}", element, residue)
    atoms = list(topology.atoms())
    for i, j in bonds:
        topology.addBond(atoms[i], atoms[j])
    if box is not None:
        topology.setPeriodicBoxVectors(_vectors(box))
    return topology


def _vectors(box: NDArray) -> Any:
    return [Vec3(*row) * ANGSTROM_TO_NM for row in box.tolist()] * unit.nanometer


def _reduced(cell: NDArray) -> NDArray[np.float64]:
    """The same lattice with the shortest off-diagonal elements, as OpenMM requires."""
    a, b, c = (np.array(row, dtype=np.float64) for row in cell)
    c = c - b * np.round(c[1] / b[1])
    c = c - a * np.round(c[0] / a[0])
    b = b - a * np.round(b[0] / a[0])
    return np.array([a, b, c])
