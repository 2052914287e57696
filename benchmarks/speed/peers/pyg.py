"""PyG's ViSNet, at the hyper-parameters of the shipped model, random weights.

Its own neighbour search needs pyg-lib, which PyPI does not have; it is given mlpot's list with
a Verlet skin instead, which costs it less. The list has the self-loops that PyG's has.
"""

from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from benchmarks.speed.candidates import Evaluate, Peer, require

PACKAGE = "torch-geometric>=2.6"


def model(config: dict[str, Any]) -> Any:
    """ViSNet with the widths, depths and cutoff of an mlpot model's config."""
    import torch

    nn = require("torch_geometric.nn.models", PACKAGE)
    torch.manual_seed(0)
    return nn.ViSNet(
        lmax=config["lmax"],
        num_heads=config["heads"],
        num_layers=config["layers"],
        hidden_channels=config["channels"],
        num_rbf=config["radial"],
        cutoff=config["cutoff"],
        derivative=False,
    ).eval()


def _evaluator(atoms: Atoms) -> Evaluate:
    import torch

    from benchmarks.speed.ours import MODEL
    from mlpot.models.checkpoint import load_potential
    from mlpot.neighbors import SKIN, NeighborFinder
    from mlpot.zoo import resolve

    config = load_potential(resolve(MODEL))[1].config
    net = model(config).requires_grad_(False)
    finder = NeighborFinder(config["cutoff"], SKIN)
    cell = atoms.cell.array if atoms.pbc.any() else None
    numbers = torch.tensor(atoms.numbers, dtype=torch.int64)
    batch = torch.zeros(len(atoms), dtype=torch.int64)
    loops = torch.arange(len(atoms)).repeat(2, 1)

    class Distance(torch.nn.Module):
        """In place of PyG's: (edge_index, distance, vector) with self-loops at the end."""

        def forward(self, pos: Any, batch: Any) -> tuple[Any, Any, Any]:
            edges, shifts = finder(pos.detach().numpy().astype(np.float64), cell, atoms.pbc)
            index = torch.from_numpy(edges)
            vector = pos[index[0]] - pos[index[1]] + torch.from_numpy(shifts).to(pos.dtype)
            count, zeros = len(atoms), pos.new_zeros(len(atoms))
            distance = torch.cat([vector.norm(dim=-1), zeros])
            vector = torch.cat([vector, pos.new_zeros(count, 3)])
            return torch.cat([index, loops], dim=1), distance, vector

    net.representation_model.distance = Distance()

    def evaluate(positions: NDArray[np.float64]) -> tuple[float, NDArray[np.floating]]:
        x = torch.tensor(positions, dtype=torch.float32, requires_grad=True)
        energy = net(numbers, x, batch)[0]
        (gradient,) = torch.autograd.grad(energy.sum(), x)
        return float(energy.detach()), -gradient.numpy()

    return evaluate


PEER = Peer("PyG ViSNet, equal hyper-parameters", _evaluator, random=True, largest=1500)
