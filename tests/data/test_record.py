"""check_records names the frame, the cause and the remedy, and lets through what is right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpot import neighbors
from mlpot.data.record import OVERLAP, Record, check_records, formula
from mlpot.errors import DataError


def methane(**fields) -> Record:
    positions = 0.63 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    numbers = np.array([6, 1, 1, 1, 1])
    return Record(**{"numbers": numbers, "positions": positions, "group": "C"} | fields)


def with_(array: np.ndarray, index, value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


X = methane().positions
GOOD = methane(energy=-1.0, forces=np.zeros((5, 3)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"energy": None}, "frame 2: it has no energy"),
        ({"energy": float("nan")}, "frame 2: its energy is nan"),
        ({"forces": None}, "frame 2: it has no forces"),
        ({"forces": np.zeros((4, 3))}, r"frame 2: forces must have shape \[5, 3\]"),
        ({"forces": with_(np.zeros((5, 3)), (3, 1), np.nan)}, "frame 2: atom 3 has a force"),
        ({"positions": with_(X, (4, 2), np.inf)}, "frame 2: atom 4 has a coordinate"),
        ({"positions": X[:3]}, "frame 2: positions must have shape"),
        ({"positions": with_(X, 4, X[1] + 0.1)}, "frame 2: atoms 1 and 4 are 0.173 Å apart"),
        ({"positions": 0.1 * X}, "frame 2: atoms .* nm"),
        ({"charge": -1}, r"frame 2: its net charge is -1"),
        ({"numbers": np.array([6, 1, 1, 1, 0])}, "frame 2: 0 is not an atomic number"),
        ({"pbc": (True, True, True)}, "frame 2: .* without a 3 x 3 cell"),
    ],
)
def test_check_records_names_the_frame(fields: dict, message: str) -> None:
    bad = methane(**{"energy": -1.0, "forces": np.zeros((5, 3))} | fields)
    check_records([GOOD] * 4, need_energy=True, need_forces=True)
    with pytest.raises(DataError, match=message):
        check_records([GOOD, GOOD, bad, GOOD], need_energy=True, need_forces=True)


def test_check_records_needs_frames_and_only_the_labels_asked_for() -> None:
    with pytest.raises(DataError, match="no frames"):
        check_records([], need_energy=False, need_forces=False)
    bare = methane(charge=1)
    check_records([bare, GOOD], need_energy=False, need_forces=False, allow_charged=True)


def test_the_force_that_is_not_finite_is_found_behind_frames_without_forces() -> None:
    bad = methane(forces=with_(np.zeros((5, 3)), (2, 0), np.nan))
    with pytest.raises(DataError, match="frame 3: atom 2"):
        check_records([methane(), GOOD, methane(), bad], need_energy=False, need_forces=False)


@given(st.integers(2, 30), st.integers(0, 2**32 - 1), st.floats(0.6, 3.0))
def test_overlaps_are_found_as_by_brute_force(n: int, seed: int, width: float) -> None:
    rng = np.random.default_rng(seed)
    frames = [
        Record(np.ones(n, dtype=np.int64), rng.uniform(0, width, (n, 3)).astype(dtype))
        for dtype in (np.float32, np.float64)
    ]
    for record in frames:
        distance = np.linalg.norm(record.positions[:, None] - record.positions, axis=2)
        closest = distance[np.triu_indices(n, 1)].min()
        if closest < OVERLAP:
            with pytest.raises(DataError, match="Å apart"):
                check_records([record], need_energy=False, need_forces=False)
        else:
            check_records([record], need_energy=False, need_forces=False)


def test_overlap_is_the_one_of_the_neighbour_list() -> None:
    assert neighbors.OVERLAP == OVERLAP


@pytest.mark.parametrize(
    ("numbers", "hill"),
    [([8, 1, 1], "H2O"), ([17, 6, 35, 1], "CHBrCl"), ([1, 9], "FH"), ([6] * 2 + [1], "C2H")],
)
def test_hill_formula(numbers: list[int], hill: str) -> None:
    assert formula(np.array(numbers)) == hill
