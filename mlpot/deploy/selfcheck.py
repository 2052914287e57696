"""Self-check: is a compiled model what it was compiled from?"""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch

from mlpot.graph import Graph, batch, to
from mlpot.models.potential import Potential, Prediction
from mlpot.neighbors import build_graph

#: largest deviation from eager that a compiled model may show: eV per atom, eV/Å
TOLERANCE = {"float32": (1e-5, 1e-3), "float64": (1e-10, 1e-9)}

#: eV/Å; where eager's own rounding is larger, so may the deviation be: elements and distances are
#: at random, and there the gradient of a network can be steep
_ROUNDING = 1e-4

#: sizes of the self-check; compiled models have been seen to be wrong for some sizes only
SIZES = (1, 2, 3, 8, 9, 20, 21)


class Deviation(NamedTuple):
    """Of a compiled model from eager. NaN where one of them is."""

    energy: float  # eV per atom, largest
    force: float  # eV/Å, largest
    excess: float  # largest share of what is tolerated; it passes with 1 or less


def deviation(
    candidate: Any, potential: Potential, elements: list[int], dtype: torch.dtype
) -> Deviation:
    """How far a compiled model is from eager.

    Tolerated are `TOLERANCE`, and of forces more in a structure where eager itself rounds by more
    than 1e-4 eV/Å.
    Fixed and random structures of odd and even size, with no pair in reach, with one, periodic
    ones, a batch, and thousands of edges; each more than once, because
    torch.jit optimises after the first calls.
    """
    found = []
    limits = TOLERANCE[str(dtype).removeprefix("torch.")]
    exact = copy.deepcopy(potential).double()
    for graph in check_graphs(elements, potential.cutoff, dtype):
        graph = to(graph, potential.scale.device, dtype)
        expected = potential(graph)
        precise = exact(to(graph, potential.scale.device, torch.float64))
        rounding = _difference(expected, precise, graph)
        steep = max(1.0, rounding[1] / _ROUNDING)
        for _ in range(3):
            energy, force = _difference(candidate(graph), expected, graph)
            excess = np.maximum(energy / limits[0], force / (limits[1] * steep))  # keeps NaN
            found.append((energy, force, excess))
    return Deviation(*(float(worst) for worst in np.max(found, axis=0)))


def _difference(got: Prediction, expected: Prediction, graph: Graph) -> tuple[float, float]:
    """Largest of energies an atom, and of forces and virials an atom (those are forces times
    distances)."""
    atoms = torch.bincount(graph.batch, minlength=len(expected.energy)).clamp(min=1)
    energy = (got.energy - expected.energy).abs() / atoms
    virial = (got.virial - expected.virial).abs() / atoms[:, None, None]
    force = (got.forces - expected.forces).abs()
    return float(energy.max()), float(torch.cat([force.flatten(), virial.flatten()]).max())


def check_graphs(elements: list[int], cutoff: float, dtype: torch.dtype) -> list[Graph]:
    """Structures for the self-check; always the same."""
    rng = np.random.default_rng(0)
    graphs = []
    for size in SIZES:
        numbers = rng.choice(elements, size)
        graphs.append(build_graph(numbers, _scatter(size, rng), cutoff, dtype=dtype))
    far = np.array([[0.0, 0.0, 0.0], [10.0 * cutoff, 0.0, 0.0]])
    graphs.append(build_graph(rng.choice(elements, 2), far, cutoff, dtype=dtype))
    box = np.diag([6.0, 7.0, 8.0])  # smaller than twice the cutoff of most models
    inside = _scatter(12, rng)
    graphs.append(
        build_graph(rng.choice(elements, 12), inside, cutoff, box, (True,) * 3, dtype=dtype)
    )
    large = _scatter(64, rng)
    cell = np.diag([6.0] * 3)
    graphs.append(
        build_graph(rng.choice(elements, 64), large, cutoff, cell, (True,) * 3, dtype=dtype)
    )
    return [*graphs, batch(graphs)]


def _scatter(atoms: int, rng: np.random.Generator) -> np.ndarray:
    """Positions on a jittered 1.5 Å grid: [atoms, 3] Å, no pair closer than 0.9 Å."""
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    chosen = grid[rng.permutation(len(grid))[:atoms]] * 1.5
    return chosen + rng.uniform(-0.15, 0.15, chosen.shape)
