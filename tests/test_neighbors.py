"""Neighbours: vesin against enumeration, and what is refused at the door."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlpot.errors import InputError, UnsupportedSystemError
from mlpot.neighbors import OVERLAP, NeighborFinder, brute_force, build_graph

ALL = (True, True, True)


def canonical(edge_index: NDArray, shifts: NDArray, positions: NDArray) -> NDArray:
    """Rows of (sender, receiver, shift), sorted, so that two lists can be compared."""
    rows = np.concatenate([edge_index.T, np.round(shifts, 6) + 0.0], axis=1)
    return rows[np.lexsort(rows.T[::-1])]


def assert_same_pairs(positions, cutoff, cell, pbc, finder=None) -> int:
    edges, shifts = (finder or NeighborFinder(cutoff))(positions, cell, pbc)
    reference = brute_force(positions, cutoff, cell, pbc)
    np.testing.assert_allclose(
        canonical(edges, shifts, positions), canonical(*reference, positions), atol=2e-6
    )
    vectors = positions[edges[0]] + shifts - positions[edges[1]]
    assert (np.linalg.norm(vectors, axis=1) < cutoff).all()
    return edges.shape[1]


def shortest(positions, cell, pbc) -> float:
    edges, shifts = brute_force(positions, 1.0, cell, pbc)
    vectors = positions[edges[0]] + shifts - positions[edges[1]]
    return float(np.linalg.norm(vectors, axis=1).min(initial=1.0))


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    atoms=st.integers(1, 12),
    size=st.floats(2.5, 9.0),
    skew=st.floats(0.0, 0.7),
    cutoff=st.floats(1.0, 5.0),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    spread=st.floats(0.5, 2.5),
)
def test_vesin_equals_brute_force(seed, atoms, size, skew, cutoff, pbc, spread) -> None:
    """Triclinic boxes down to a quarter of the cutoff, atoms in and out of them, mixed pbc."""
    rng = np.random.default_rng(seed)
    cell = size * (np.diag(rng.uniform(0.8, 1.3, 3)) + skew * np.tril(rng.uniform(-1, 1, (3, 3))))
    cell[np.diag_indices(3)] = np.abs(cell.diagonal()) + 0.5
    cell = cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    positions = rng.uniform(-0.5 * spread, 0.5 * spread, (atoms, 3)) @ cell
    assume(shortest(positions, cell, pbc) > OVERLAP)
    assert_same_pairs(positions, cutoff, cell, pbc)


def test_box_smaller_than_the_cutoff() -> None:
    cell = np.array([[2.0, 0.0, 0.0], [0.6, 2.2, 0.0], [0.3, -0.4, 2.4]])
    count = assert_same_pairs(np.array([[0.1, 0.2, 0.3]]), 5.0, cell, ALL)
    expected = 4 / 3 * np.pi * 5.0**3 / np.linalg.det(cell)
    assert count == pytest.approx(expected, rel=0.15)  # one atom sees many images of itself


def test_without_a_box() -> None:
    positions = np.random.default_rng(0).uniform(0, 8, (40, 3))
    edges, shifts = NeighborFinder(3.0)(positions)
    assert not shifts.any()
    assert_same_pairs(positions, 3.0, None, (False,) * 3)
    # a box that is there but not periodic changes nothing
    again, _ = NeighborFinder(3.0)(positions, np.eye(3), (False,) * 3)
    assert np.array_equal(edges, again)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_periodic_direction_needs_one_lattice_vector(axis: int) -> None:
    cell = np.zeros((3, 3))
    cell[axis, axis] = 3.0
    pbc = tuple(i == axis for i in range(3))
    edges, shifts = NeighborFinder(3.5)(np.zeros((1, 3)), cell, pbc)
    assert edges.tolist() == [[0, 0], [0, 0]]
    assert sorted(shifts[:, axis].tolist()) == [-3.0, 3.0]


def test_every_pair_is_there_in_both_directions() -> None:
    rng = np.random.default_rng(5)
    positions, cell = rng.uniform(0, 6, (20, 3)), np.diag([6.0, 6.5, 7.0])
    edges, shifts = NeighborFinder(4.0)(positions, cell, ALL)
    forth = {(j, i, *np.round(s, 6) + 0.0) for (j, i), s in zip(edges.T, shifts, strict=True)}
    back = {(i, j, *np.round(-s, 6) + 0.0) for (j, i), s in zip(edges.T, shifts, strict=True)}
    assert len(forth) == edges.shape[1]
    assert forth == back


@pytest.mark.parametrize("periodic", [True, False])
def test_skin_gives_what_a_fresh_list_gives(periodic: bool) -> None:
    """Along a random walk: small steps (list kept), a leap (rebuilt), another box (rebuilt)."""
    rng = np.random.default_rng(2)
    cell = np.array([[7.0, 0.0, 0.0], [1.0, 7.5, 0.0], [0.5, -1.0, 8.0]])
    pbc = (periodic,) * 3
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3) / 3
    positions = grid @ cell
    finder = NeighborFinder(4.0, skin=1.0)
    for step in range(30):
        positions = positions + rng.normal(scale=0.5 if step == 15 else 0.02, size=(27, 3))
        if step == 20:
            cell = cell * 1.05
            positions = positions * 1.05
        assert_same_pairs(positions, 4.0, cell if periodic else None, pbc, finder)


def test_skin_and_another_number_of_atoms() -> None:
    finder = NeighborFinder(4.0, skin=1.0)
    grid = 1.5 * np.stack(np.meshgrid(*[np.arange(3.0)] * 3), axis=-1).reshape(-1, 3)
    for atoms in (27, 5, 1, 20):
        assert_same_pairs(grid[:atoms], 4.0, None, (False,) * 3, finder)


# --- build_graph ---------------------------------------------------------------------------


def test_build_graph() -> None:
    cell = np.diag([3.0, 4.0, 5.0])
    graph = build_graph([1, 8], [[0, 0, 0], [1, 1, 1]], 3.5, cell, ALL, dtype=torch.float64)
    assert graph.numbers.tolist() == [1, 8]
    assert graph.cell.tolist() == [cell.tolist()]
    assert graph.shifts.abs().max() > 0
    assert graph.positions.dtype == graph.shifts.dtype == graph.cell.dtype == torch.float64
    assert build_graph([1], [[0, 0, 0]], 3.5).positions.dtype == torch.float32
    assert not build_graph([1], [[0, 0, 0]], 3.5, cell).cell.any()  # a box, but not periodic


def test_one_atom_alone_has_no_edges() -> None:
    graph = build_graph([8], [[1.0, 2.0, 3.0]], 5.0)
    assert graph.edge_index.shape == (2, 0)
    assert graph.shifts.shape == (0, 3)


@pytest.mark.parametrize("positions", [[[0, 0, 0]], [[0, 0], [1, 1]], [0, 0, 0]])
def test_shapes_that_do_not_fit(positions) -> None:
    with pytest.raises(InputError, match=r"positions must have shape \[2, 3\], got"):
        build_graph([1, 1], positions, 5.0)


def test_no_atoms() -> None:
    with pytest.raises(InputError, match="no atoms"):
        build_graph([], np.zeros((0, 3)), 5.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_positions_that_are_not_finite(value: float) -> None:
    with pytest.raises(InputError, match="atom 1 has a NaN or infinite.*Start from a finite"):
        build_graph([1, 1, 1], [[0, 0, 0], [0, value, 0], [2, 0, 0]], 5.0)


@pytest.mark.parametrize("distance", [0.0, 1e-12, 0.096, 0.29])
def test_overlapping_atoms(distance: float) -> None:
    with pytest.raises(InputError, match=r"atoms \d and \d overlap.*Check the units"):
        build_graph([8, 1, 1], [[0, 0, 0], [5, 0, 0], [0, 0, distance]], 5.0)


def test_overlap_across_the_boundary() -> None:
    positions, cell = [[0.05, 1, 1], [5.95, 1, 1]], 6 * np.eye(3)
    build_graph([1, 1], positions, 3.0, cell)
    with pytest.raises(InputError, match="overlap"):
        build_graph([1, 1], positions, 3.0, cell, ALL)


@pytest.mark.parametrize(
    "cell", [None, np.zeros((3, 3)), np.diag([5.0, 5.0, 0.0]), np.eye(2), np.full((3, 3), np.nan)]
)
def test_periodic_without_a_usable_cell(cell) -> None:
    with pytest.raises(UnsupportedSystemError, match="set a 3 x 3 cell.*or turn periodicity off"):
        build_graph([1], [[0, 0, 0]], 3.0, cell, ALL)


def test_flat_cells() -> None:
    with pytest.raises(UnsupportedSystemError, match="no volume"):
        build_graph([1], [[0, 0, 0]], 3.0, [[5, 0, 0], [0, 5, 0], [5, 5, 0]], ALL)
