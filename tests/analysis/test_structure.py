"""Distributions: equal ones agree, and known differences are found in size."""

import numpy as np
import pytest
from ase.build import molecule

from mlpot.analysis.criteria import find_bonds
from mlpot.analysis.structure import agreement, dihedral_quartets, distributions

DIATOMIC = np.array([7, 7]), np.array([[0, 1]])


def diatomic(lengths: np.ndarray) -> np.ndarray:
    frames = np.zeros((len(lengths), 2, 3))
    frames[:, 1, 2] = lengths
    return frames


def test_h_of_r_integrates_to_one_and_equal_trajectories_agree() -> None:
    atoms = molecule("CH3CH2OH")
    rng = np.random.default_rng(0)
    frames = atoms.positions + 0.05 * rng.standard_normal((40, 9, 3))
    bonds = find_bonds(atoms.numbers, atoms.positions)
    found = distributions(atoms.numbers, bonds, frames)
    assert found.hr.sum() * 0.05 == pytest.approx(1.0)
    assert agreement(found, found) == (0.0, 0.0, 0.0, 0.0)


def test_distributions_that_do_not_overlap_differ_by_two() -> None:
    near, far = (distributions(*DIATOMIC, diatomic(np.full(9, x))) for x in (1.12, 2.02))
    found = agreement(near, far)
    assert found.hr_mae == pytest.approx(2.0)
    assert found.bond_shift == pytest.approx(0.9, abs=1e-4)
    assert found.bond_distance == pytest.approx(0.9, abs=1e-4)
    assert found.dihedral_distance is None


def test_a_wider_distribution_of_the_same_mean_has_no_shift_but_a_distance() -> None:
    narrow, wide = (
        distributions(*DIATOMIC, diatomic(np.array([1.5 - w, 1.5 + w]))) for w in (0.01, 0.11)
    )
    found = agreement(narrow, wide)
    assert found.bond_shift == pytest.approx(0.0, abs=1e-5)
    assert found.bond_distance == pytest.approx(0.1, abs=1e-4)


def test_dihedrals_one_a_bond_between_inner_atoms() -> None:
    atoms = molecule("CH3CH2OH")
    bonds = find_bonds(atoms.numbers, atoms.positions)
    quartets = dihedral_quartets(atoms.numbers, bonds)
    assert len(quartets) == 2  # about C-C and C-O
    backbone = [q for q in quartets.tolist() if all(atoms.numbers[q[1:3]] == 6)]
    assert [sorted(atoms.symbols[backbone[0]])] == [["C", "C", "H", "O"]]


def test_a_flipped_dihedral_is_found() -> None:
    trans = np.array([[[1.0, 1, 0], [0, 0, 0], [0, 0, 1.5], [1, 1, 1.5]]])
    cis = trans.copy()
    cis[0, 3, :2] *= -1
    numbers, bonds = np.array([1, 8, 8, 1]), np.array([[0, 1], [1, 2], [2, 3]])
    found = agreement(distributions(numbers, bonds, cis), distributions(numbers, bonds, trans))
    assert found.dihedral_distance == pytest.approx(1.0)
