"""Shortest lengths of pairs: by hand, periodic, and in any order."""

import numpy as np
import pytest
from ase.build import molecule

from mlpot.data.lengths import pair_name, shortest_lengths
from mlpot.data.record import Record


def record(name: str, scale: float = 1.0) -> Record:
    atoms = molecule(name)
    return Record(atoms.numbers, scale * atoms.positions)


def test_the_shortest_of_all_frames() -> None:
    water = molecule("H2O")
    found = shortest_lengths([record("H2O"), record("H2O", 0.9), record("HF")], cutoff=4.0)
    assert set(found) == {"H-H", "H-O", "H-F"}
    assert found["H-O"] == pytest.approx(0.9 * water.get_distance(0, 1), abs=1e-4)
    assert found["H-H"] == pytest.approx(0.9 * water.get_distance(1, 2), abs=1e-4)


def test_pairs_out_of_reach_are_not_known() -> None:
    far = Record(np.array([8, 1]), np.array([[0.0, 0, 0], [4.1, 0, 0]]))
    assert shortest_lengths([far], cutoff=4.0) == {}
    assert shortest_lengths([far], cutoff=4.2) == {"H-O": 4.1}


def test_images_count() -> None:
    alone = Record(
        np.array([18]), np.zeros((1, 3)), cell=np.diag([3.5, 9.0, 9.0]), pbc=(True, True, True)
    )
    assert shortest_lengths([alone], cutoff=4.0) == {"Ar-Ar": 3.5}


def test_names_are_ordered_by_atomic_number() -> None:
    assert pair_name(6, 1) == pair_name(1, 6) == "H-C"
