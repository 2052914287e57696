"""A structure in blocks: eager's numbers, wherever it is cut. Compiled: tests/deploy."""

from typing import Any

import numpy as np
import pytest
import torch

from mlpot.deploy.selfcheck import check_graphs
from mlpot.graph import Graph
from mlpot.models import blocks
from mlpot.models.blocks import predict
from mlpot.models.stages import has_stages, stage_functions
from mlpot.neighbors import build_graph
from tests.helpers import ethanol, random_potential

CONFIGS: dict[str, dict[str, Any]] = {
    "three layers": {"layers": 3, "heads": 16},
    "four layers, two heads": {"layers": 4, "heads": 2},
    "three layers, lmax 2": {"layers": 3, "heads": 4, "lmax": 2},
    "two layers, lmax 2, one head": {"layers": 2, "heads": 1, "lmax": 2},
    "one layer, kinks": {"layers": 1, "smooth": False, "vector_norm": "max_min"},
}


def crowd() -> Graph:
    """Two ethanol molecules in a box smaller than twice the cutoff, edges in any order."""
    atoms = ethanol()
    atoms.cell = [6.0, 6.0, 5.5]
    atoms *= (1, 1, 2)
    rng = np.random.default_rng(0)
    atoms.positions += 0.05 * rng.standard_normal(atoms.positions.shape) + [9.0, -7.0, 0.0]
    graph = build_graph(
        atoms.numbers, atoms.positions, 4.0, atoms.cell.array, (True,) * 3, torch.float64
    )
    shuffle = torch.from_numpy(rng.permutation(graph.edge_index.shape[1]))
    return graph._replace(edge_index=graph.edge_index[:, shuffle], shifts=graph.shifts[shuffle])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("edges", [100, 10**6])
def test_blocks_give_eagers_numbers(name: str, edges: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one structure or several, periodic or not, in many blocks or in one."""
    monkeypatch.setattr(blocks, "BLOCK_EDGES", edges)
    potential = random_potential(cutoff=4.0, **CONFIGS[name]).double().requires_grad_(False)
    functions = stage_functions(potential)
    run = {n: lambda inputs, call=call: call(*inputs) for n, call in functions.items()}
    graphs = [crowd(), *check_graphs(potential.elements, 4.0, torch.float64)]
    assert any(len(graph.cell) > 1 for graph in graphs)
    for graph in graphs:
        got, want = predict(run, graph), potential(graph)
        torch.testing.assert_close(got.energy, want.energy, atol=1e-9, rtol=1e-12)
        for field in ("interaction", "forces", "virial"):
            scale = float(getattr(want, field).abs().max())
            torch.testing.assert_close(
                getattr(got, field), getattr(want, field), atol=1e-12 * max(1.0, scale), rtol=1e-11
            )


def test_self_loops_have_no_stages() -> None:
    assert has_stages(random_potential())
    assert not has_stages(random_potential(self_loops=True))
