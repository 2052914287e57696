"""Rotations about single bonds: which bonds turn, and what a rotation leaves as it was."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mlpot.data import torsions
from mlpot.data.loader import GraphLoader
from mlpot.data.record import Record
from mlpot.data.torsions import rotors, twist
from mlpot.errors import DataError
from mlpot.md import bonds


def axes(atoms: Atoms) -> list[str]:
    found = [r.axis for r in rotors(atoms.numbers, atoms.positions)]
    return sorted("".join(sorted(atoms.symbols[i] for i in axis)) for axis in found)


@pytest.mark.parametrize(
    ("name", "bonds"),
    [
        ("trans-butane", ["CC", "CC", "CC"]),
        ("CH3CH2OH", ["CC", "CO"]),
        ("HCOOCH3", ["CO", "CO"]),  # both of the bridging oxygen
        ("CH3CONH2", ["CC"]),  # an amide's C-N does not turn
        ("C2H4", []),
        ("C6H6", []),
        ("cyclobutane", []),
        ("H2O", []),
        ("CH4", []),
    ],
)
def test_which_bonds_turn(name: str, bonds: list[str]) -> None:
    assert axes(molecule(name)) == bonds


def test_two_molecules_turn_as_one_does() -> None:
    pair = molecule("CH3CH2OH") + Atoms(
        molecule("trans-butane").numbers, molecule("trans-butane").positions + 9.0
    )
    assert axes(pair) == ["CC", "CC", "CC", "CC", "CO"]


def test_lengths_and_angles_stay_and_dihedrals_spread_as_asked() -> None:
    butane = molecule("trans-butane")
    carbons = np.flatnonzero(butane.numbers == 6)
    order = carbons[np.argsort(butane.positions[carbons] @ direction(butane, carbons))]
    rng, angles = np.random.default_rng(0), []
    for _ in range(300):
        turned = Atoms(butane.numbers, twist(butane.numbers, butane.positions, 20.0, rng))
        for i, j in near(butane, 1.8):  # bonds, and the two ends of an angle
            apart = turned.get_distance(i, j) - butane.get_distance(i, j)
            assert abs(apart) < 1e-9
        for i, j in geminal(butane):
            assert abs(turned.get_distance(i, j) - butane.get_distance(i, j)) < 1e-9
        angles.append((turned.get_dihedral(*order) + 180) % 360 - 180)
    change = (np.array(angles) - butane.get_dihedral(*order) + 180) % 360 - 180
    assert np.std(change) == pytest.approx(20, rel=0.12)
    assert abs(np.mean(change)) < 4


def direction(atoms: Atoms, chosen: np.ndarray) -> np.ndarray:
    """Along the chain."""
    centred = atoms.positions[chosen] - atoms.positions[chosen].mean(axis=0)
    return np.linalg.svd(centred)[2][0]


def near(atoms: Atoms, reach: float) -> np.ndarray:
    return np.argwhere(np.triu(atoms.get_all_distances() < reach, 1))


def geminal(atoms: Atoms) -> np.ndarray:
    """Pairs with a bonded neighbour in common."""
    bonded = (atoms.get_all_distances() < 1.8) & ~np.eye(len(atoms), dtype=bool)
    bonded &= ~((atoms.numbers[:, None] == 1) & (atoms.numbers == 1))  # H-H of a methyl: 1.77 Å
    return np.argwhere(np.triu((bonded.astype(int) @ bonded.astype(int)) > 0, 1))


def test_no_rotation_brings_atoms_nearer_than_a_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ethanol face to face with itself: turned at will, atoms would lie on each other."""
    one = molecule("CH3CH2OH")
    crowded = one + Atoms(one.numbers, one.positions + [0.0, 0.0, 3.4])

    def closest() -> list[float]:
        rng, found = np.random.default_rng(0), []
        for _ in range(100):
            turned = Atoms(crowded.numbers, twist(crowded.numbers, crowded.positions, 60.0, rng))
            found.append(turned.get_all_distances()[:9, 9:].min())
            assert not np.allclose(turned.positions, crowded.positions)
        return found

    before = crowded.get_all_distances()[:9, 9:].min()
    assert min(closest()) >= min(before, 1.67)
    monkeypatch.setattr(torsions, "CLASH", 0.0)
    assert min(closest()) < min(before, 1.67) - 0.2  # so it is the rule that does it


def test_a_contact_that_is_there_may_stay() -> None:
    """A strained frame turns as well, as long as it gets no worse."""
    butane = molecule("trans-butane")
    squeezed = 0.85 * butane.positions
    rng = np.random.default_rng(0)
    turned = twist(butane.numbers, squeezed, 5.0, rng)
    assert not np.allclose(turned, squeezed)


def test_bonds_are_those_of_a_simulation() -> None:
    assert torsions.BONDED == bonds.BONDED


def record(name: str, **fields: object) -> Record:
    atoms = molecule(name)
    return Record(atoms.numbers.astype(np.int64), atoms.positions, energy=0.0, **fields)  # type: ignore[arg-type]


def test_the_loader_twists_first_and_reports_the_coordinate_noise_alone() -> None:
    records = [record("trans-butane"), record("H2O")]
    for noise in (0.0, 0.05):
        loader = GraphLoader(records, 5.0, 1000, shuffle=False, noise=noise, torsions=40.0)
        batch = next(iter(loader))
        clean = batch.graph.positions.double() - noise * batch.noise.double()
        butane, water = (clean[batch.graph.batch == i].numpy() for i in (0, 1))
        np.testing.assert_allclose(water, records[1].positions, atol=1e-6)
        assert np.abs(butane - records[0].positions).max() > 0.1
        for i, j in near(molecule("trans-butane"), 1.75):
            length = np.linalg.norm(butane[i] - butane[j])
            old = np.linalg.norm(records[0].positions[i] - records[0].positions[j])
            assert length == pytest.approx(old, abs=1e-5)
        again = next(iter(loader))
        assert again.graph.positions.equal(batch.graph.positions)  # validation repeats itself


def test_periodic_frames_are_not_twisted() -> None:
    cell = record("CH3CH2OH", cell=20 * np.eye(3), pbc=(True, True, True))
    with pytest.raises(DataError, match="Set torsions to 0"):
        GraphLoader([cell], 5.0, torsions=10.0)
