"""Every input format, and every input that must be refused with a cause and a remedy."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import write
from openmm import app, unit

from mlpot.errors import InputError, MissingDependencyError, UnsupportedSystemError
from mlpot.md.structure import read_structure
from tests.md.conftest import EXAMPLES

PDB = EXAMPLES / "alanine-dipeptide.pdb"


def bonds(structure) -> set[tuple[int, int]]:
    return {(a.index, b.index) for a, b in structure.topology.bonds()}


def test_pdb() -> None:
    structure = read_structure(PDB)
    assert structure.formula == "C6H12N2O2"
    assert structure.box is None
    assert [r.name for r in structure.topology.residues()] == ["ACE", "ALA", "NME"]
    assert len(bonds(structure)) == 21
    assert structure.masses.sum() == pytest.approx(144.17, abs=0.01)
    pairs = np.array(sorted(bonds(structure)))
    lengths = np.linalg.norm(np.subtract(*structure.positions[pairs.T]), axis=1)
    assert min(lengths) > 0.95 and max(lengths) < 1.6


def test_the_example_has_names_that_a_force_field_knows() -> None:
    system = app.ForceField("amber14-all.xml").createSystem(app.PDBFile(str(PDB)).topology)
    assert system.getNumParticles() == 22


@pytest.mark.parametrize(
    ("side", "periodic", "expected"), [(30.0, True, 30.0), (30.0, False, None), (1.0, True, None)]
)
def test_pdb_box(tmp_path: Path, side: float, periodic: bool, expected: float | None) -> None:
    cryst = f"CRYST1{side:9.3f}{side:9.3f}{side:9.3f}  90.00  90.00  90.00 P 1           1\n"
    path = tmp_path / "box.pdb"
    path.write_text(cryst + PDB.read_text())
    structure = read_structure(path, periodic=periodic)
    stored = structure.topology.getPeriodicBoxVectors()
    if expected is None:
        assert structure.box is None and stored is None
    else:
        assert structure.box == pytest.approx(expected * np.eye(3))
        assert stored[0][0].value_in_unit(unit.angstrom) == pytest.approx(expected)


def test_xyz_takes_the_first_frame(tmp_path: Path) -> None:
    first, second = molecule("CH3OH"), molecule("H2O")
    write(tmp_path / "two.xyz", [first, second])
    structure = read_structure(tmp_path / "two.xyz")
    assert structure.positions == pytest.approx(first.positions)
    assert structure.numbers.tolist() == first.numbers.tolist()
    assert "2 frames" in structure.notes[0]


def test_triclinic_cell_is_turned_and_reduced(tmp_path: Path) -> None:
    atoms = bulk("MgO", "rocksalt", a=4.21)  # primitive cell: not lower triangular
    atoms.rotate(30, (1, 2, 3), rotate_cell=True)
    atoms *= (2, 2, 2)
    write(tmp_path / "mgo.extxyz", atoms)
    structure = read_structure(tmp_path / "mgo.extxyz")
    box = structure.box
    assert box is not None
    assert np.triu(box, 1) == pytest.approx(0)
    assert abs(box[1, 0]) <= box[0, 0] / 2 + 1e-6 and abs(box[2, 1]) <= box[1, 1] / 2 + 1e-6
    turned = atoms.copy()
    turned.set_cell(box)
    turned.set_positions(structure.positions)
    assert np.sort(turned.get_all_distances(mic=True), axis=None) == pytest.approx(
        np.sort(atoms.get_all_distances(mic=True), axis=None), abs=1e-6
    )


def test_smiles_and_seed() -> None:
    pytest.importorskip("rdkit")
    structure = read_structure("CCO", seed=3)
    assert structure.formula == "C2H6O" and len(bonds(structure)) == 8
    assert read_structure("CCO", seed=3).positions == pytest.approx(structure.positions)
    assert read_structure("CCO", seed=4).positions != pytest.approx(structure.positions)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("suffix", [".sdf", ".mol"])
def test_sdf(tmp_path: Path, flat: bool, suffix: str) -> None:
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    molecule = chem.MolFromSmiles("CCO")
    if flat:
        AllChem.Compute2DCoords(molecule)
    else:
        molecule = chem.AddHs(molecule)
        AllChem.EmbedMolecule(molecule, randomSeed=1)
    path = tmp_path / f"ethanol{suffix}"
    path.write_text(chem.MolToMolBlock(molecule))
    structure = read_structure(path)
    assert structure.formula == "C2H6O"
    assert np.ptp(structure.positions, axis=0).min() > 0.5  # not flat
    assert bool(structure.notes) == flat
    if not flat:
        given = molecule.GetConformer().GetPositions()
        assert structure.positions == pytest.approx(given, abs=1e-3)


def charged_pdb() -> str:
    # formal charge in columns 79-80 of the NME nitrogen
    lines = PDB.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line[12:20].split() == ["N", "NME"])
    return "\n".join([*lines[:at], lines[at][:78] + "1+", *lines[at + 1 :]])


REFUSED = {
    "absent.pdb": (None, InputError, "no such file"),
    "empty.pdb": ("", InputError, "Check that the file is complete"),
    "garbage.xyz": ("not\na molecule\n", InputError, "cannot be read as XYZ"),
    "cut.xyz": ("3\n\nO 0 0 0\n", InputError, "cannot be read as XYZ"),
    "dummy.xyz": ("2\n\nX 0 0 0\nO 0 0 2\n", InputError, "dummy atom"),
    "nan.xyz": ("2\n\nH 0 0 nan\nH 0 0 1\n", InputError, "NaN"),
    "garbage.sdf": ("not\na molecule\n", InputError, "RDKit"),
    "molecule.mol2": ("", InputError, "suffix"),
    "ion.xyz": ("1\ncharge=1\nNa 0 0 0\n", UnsupportedSystemError, "total charge of +1"),
    "radical.xyz": ("2\n\nO 0 0 0\nH 0 0 1\n", UnsupportedSystemError, "odd number of electrons"),
    "slab.xyz": (
        '2\nLattice="9 0 0 0 9 0 0 0 9" pbc="T T F"\nH 0 0 0\nH 0 0 1\n',
        UnsupportedSystemError,
        "--no-pbc",
    ),
    "heavy.pdb": (
        "\n".join(line for line in PDB.read_text().splitlines() if line[76:78] != " H"),
        UnsupportedSystemError,
        "no hydrogen",
    ),
    "charged.pdb": (charged_pdb(), UnsupportedSystemError, "total charge of +1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files(tmp_path: Path, name: str) -> None:
    content, kind, says = REFUSED[name]
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(kind) as caught:
        read_structure(path)
    assert says in str(caught.value) and name in str(caught.value) or "dummy" in says


@pytest.mark.parametrize(
    ("smiles", "kind", "says"),
    [
        ("C(C", InputError, "neither a file nor a valid SMILES"),
        ("", InputError, "neither a file"),
        ("protein.pdbx", InputError, "neither a file"),
        ("CC(=O)[O-]", UnsupportedSystemError, "total charge of -1"),
        ("[CH2]", UnsupportedSystemError, "unpaired electrons"),
    ],
)
def test_refused_smiles(smiles: str, kind: type[Exception], says: str) -> None:
    pytest.importorskip("rdkit")
    with pytest.raises(kind, match=says):
        read_structure(smiles)


def test_smiles_without_rdkit(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rdkit", None)
    monkeypatch.setitem(sys.modules, "rdkit.Chem", None)
    with pytest.raises(MissingDependencyError, match=r"pip install mlpot\[chem\]"):
        read_structure("CCO")


@pytest.mark.parametrize("smiles", ["O.O", "O.O.O", "CO.C1CCCCC1"])
def test_molecules_of_one_smiles_stand_apart(smiles: str) -> None:
    structure = read_structure(smiles)
    owner = np.repeat(
        np.arange(smiles.count(".") + 1),
        [len(read_structure(part).numbers) for part in smiles.split(".")],
    )
    gap = structure.positions[:, None] - structure.positions[None]
    distance = np.linalg.norm(gap, axis=2)[owner[:, None] != owner[None]]
    assert 1.5 < distance.min() < 4.0
