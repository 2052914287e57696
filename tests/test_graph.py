"""Graph: joined and split without loss, and refused with a reason when it cannot be used."""

import numpy as np
import pytest
import torch

from mlpot.errors import InputError, MLPotError
from mlpot.graph import Graph, batch, check, edge_vectors, to, unbatch
from mlpot.neighbors import build_graph
from mlpot.testing import random_molecule

CUTOFF = 3.0


def graphs() -> list[Graph]:
    rng = np.random.default_rng(0)
    made = []
    for atoms in (5, 1, 8, 2):
        system = random_molecule([1, 6, 8], atoms, rng)
        made.append(system.graph(CUTOFF))
    cell = np.diag([3.5, 4.0, 4.5])
    made.insert(
        2, build_graph([11, 17], [[0.0] * 3, [2.0] * 3], CUTOFF, cell, [True] * 3, torch.float64)
    )
    return made


def assert_equal(a: Graph, b: Graph) -> None:
    for name in Graph._fields:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_batch_and_unbatch_are_inverse() -> None:
    singles = graphs()
    joined = check(batch(singles))
    assert joined.cell.shape == (5, 3, 3)
    assert joined.batch.tolist() == [0] * 5 + [1] + [2] * 2 + [3] * 8 + [4] * 2
    for one, again in zip(singles, unbatch(joined), strict=True):
        assert_equal(one, again)
    assert_equal(batch(unbatch(joined)), joined)


def test_batches_can_be_batched() -> None:
    singles = graphs()
    assert_equal(batch([batch(singles[:2]), batch(singles[2:])]), batch(singles))


def test_edges_stay_within_their_structure() -> None:
    joined = batch(graphs())
    assert torch.equal(joined.batch[joined.edge_index[0]], joined.batch[joined.edge_index[1]])
    expected = torch.cat([edge_vectors(g) for g in graphs()])
    assert torch.equal(edge_vectors(joined), expected)


def test_edge_vectors_point_from_receiver_to_sender() -> None:
    graph = build_graph([1, 8], [[0.0, 0, 0], [0, 0, 0.9]], CUTOFF, dtype=torch.float64)
    pairs = zip(graph.edge_index.T.tolist(), edge_vectors(graph), strict=True)
    vectors = {tuple(pair): vector for pair, vector in pairs}
    assert vectors[(1, 0)].tolist() == [0.0, 0.0, 0.9]
    assert vectors[(0, 1)].tolist() == [0.0, 0.0, -0.9]


def test_to_changes_real_fields_only() -> None:
    moved = to(graphs()[0], "cpu", torch.float32)
    kinds = {name: getattr(moved, name).dtype for name in Graph._fields}
    real = {name for name, dtype in kinds.items() if dtype == torch.float32}
    assert real == {"positions", "shifts", "cell"}
    assert {kinds[name] for name in kinds.keys() - real} == {torch.int64}


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        batch([])


@pytest.mark.parametrize("name", Graph._fields)
def test_wrong_shapes(name: str) -> None:
    graph = batch(graphs())
    wrong = getattr(graph, name).unsqueeze(-1)
    with pytest.raises(InputError, match="must have shape .*, got"):
        check(graph._replace(**{name: wrong}))


@pytest.mark.parametrize("name", ["numbers", "edge_index", "batch"])
def test_wrong_integers(name: str) -> None:
    graph = graphs()[0]
    with pytest.raises(InputError, match=f"{name} must be int64, got torch.int32"):
        check(graph._replace(**{name: getattr(graph, name).int()}))


def test_values_that_cannot_be_used() -> None:
    graph = graphs()[0]
    for value in (float("nan"), float("inf")):
        positions = graph.positions.clone()
        positions[3, 1] = value
        with pytest.raises(InputError, match="atom 3 has a NaN or infinite.*finite geometry"):
            check(graph._replace(positions=positions))
    for index in (-1, 5):
        edges = graph.edge_index.clone()
        edges[0, 0] = index
        with pytest.raises(InputError, match="must lie in 0..4"):
            check(graph._replace(edge_index=edges))
    for structure in ([0, 0, 1, 0, 0], [0, 0, 0, 0, 1]):
        with pytest.raises(InputError, match="batch must ascend"):
            check(graph._replace(batch=torch.tensor(structure)))
    empty = Graph(*(field[..., :0] if field.dim() < 2 else field for field in graph))
    none = graph.positions[:0]
    empty = empty._replace(positions=none, shifts=none, edge_index=graph.edge_index[:, :0])
    with pytest.raises(InputError, match="no atoms"):
        check(empty)


def test_negative_structure_index() -> None:
    graph = graphs()[0]
    with pytest.raises(InputError, match="batch"):
        check(graph._replace(batch=torch.tensor([-1, 0, 0, 0, 0])))


def test_errors_are_of_the_family() -> None:
    assert issubclass(InputError, MLPotError) and issubclass(InputError, ValueError)
