"""A script module that needs positions and box only: it finds its neighbours itself.

For hosts that run TorchScript in C++ and bring no neighbour list (OpenMM's TorchForce).
Small non-periodic systems look at all pairs with torch operations alone, so the module can be
reloaded anywhere; larger or periodic ones use vesin's operator, which must be imported first.
"""

from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mlpot.deploy.engines import DeployedModel
from mlpot.deploy.metadata import check_system
from mlpot.errors import InputError, require
from mlpot.graph import Graph, edge_vectors
from mlpot.models.potential import Potential
from mlpot.models.scripting import script
from mlpot.neighbors import OVERLAP

#: up to this many atoms, testing all pairs is cheaper than sorting them into cells
ALL_PAIRS = 400


class AllPairs(nn.Module):
    """Pairs within the cutoff among a fixed list of all pairs; not periodic."""

    def __init__(self, atoms: int, cutoff: float):
        super().__init__()
        self.square = cutoff * cutoff
        receiver, sender = torch.ones(atoms, atoms).fill_diagonal_(0).nonzero().T
        self.register_buffer("pairs", torch.stack([sender, receiver]))
        self.pairs: Tensor

    def forward(self, positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """edge_index [2, E] and shifts [E, 3] Å of positions [N, 3] Å"""
        vectors = positions.index_select(0, self.pairs[0]) - positions.index_select(
            0, self.pairs[1]
        )
        near = ((vectors * vectors).sum(dim=1) < self.square).nonzero().squeeze(1)
        shifts = torch.zeros([near.shape[0], 3], dtype=positions.dtype, device=positions.device)
        return self.pairs.index_select(1, near), shifts


class Vesin(nn.Module):
    """Pairs from vesin's TorchScript operator; periodic or large."""

    def __init__(self, cutoff: float, periodic: bool):
        super().__init__()
        vesin = require("vesin_torch", "vesin-torch", "TorchScript of periodic or large systems")
        self.list = vesin.NeighborList(cutoff=cutoff, full_list=True, sorted=True)
        self.periodic = periodic

    def forward(self, positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        # in float64: a pair that rounding moves across the cutoff would come and go
        found = self.list.compute(
            positions.detach().double(), cell.double(), self.periodic, "ijS", True
        )
        shifts = found[2].to(positions.dtype) @ cell
        return torch.stack([found[1], found[0]]), shifts


def check_start(graph: Graph, overlap: float) -> None:
    """The checks of `NeighborFinder` for hosts that run TorchScript."""
    if not bool(torch.isfinite(graph.positions).all()):
        raise ValueError("a coordinate is NaN or infinite; start from a finite geometry")
    square = (edge_vectors(graph) ** 2).sum(dim=1)
    if square.numel() > 0 and float(square.min()) < overlap * overlap:
        pair = graph.edge_index[:, int(square.argmin())]
        raise ValueError(
            f"atoms {int(pair.min())} and {int(pair.max())} overlap "
            f"({float(square.min()) ** 0.5} Å apart, below {overlap} Å): a duplicated atom, or "
            "coordinates in the wrong unit. Check the starting geometry"
        )


class Standalone(nn.Module):
    """Positions [N, 3] Å and cell [3, 3] Å -> energy [] eV (float64) and forces [N, 3] eV/Å."""

    numbers: Tensor
    batch: Tensor

    def __init__(self, potential: Any, numbers: ArrayLike, finder: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.potential = potential
        self.finder = finder
        self.first_call = True
        self.dtype = dtype
        self.overlap = OVERLAP
        self.register_buffer("numbers", torch.as_tensor(numbers))
        self.register_buffer("batch", torch.zeros_like(self.numbers))

    def forward(self, positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # torch.jit.freeze, which OpenMM-Torch calls, drops every detach()
            x, box = positions.to(self.dtype), cell.to(self.dtype)
            edge_index, shifts = self.finder(x, box)
            graph = Graph(self.numbers, x, edge_index, shifts, self.batch, box.unsqueeze(0))
            if self.first_call:  # bad input is found at the door, and costs nothing afterwards
                self.first_call = False
                check_start(graph, self.overlap)
            prediction = self.potential(graph)
            return prediction.energy[0], prediction.forces


def standalone(
    model: DeployedModel, numbers: ArrayLike, periodic: bool, charge: float = 0
) -> Standalone:
    """The model tied to its atoms, for scripting into a host's own wrapper.

    Raises:
        UnsupportedSystemError: the model does not cover these atoms or this charge.
        MissingDependencyError: vesin-torch is needed and absent.
    """
    z = check_system(model.info, numbers, charge)
    small = len(z) <= ALL_PAIRS and not periodic
    finder = AllPairs(len(z), model.cutoff) if small else Vesin(model.cutoff, periodic)
    module = model.module
    if model.engine == "compiled":
        raise InputError("the compiled engine runs in Python only; load with engine='torchscript'")
    scripted = script(module) if isinstance(module, Potential) else module
    return Standalone(scripted, z, finder, model.dtype).to(model.device)
