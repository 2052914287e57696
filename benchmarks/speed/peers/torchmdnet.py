"""torchmd-net: the equivariant transformer (6 x 64) and TensorNet (2 x 64), random weights.

Hyper-parameters that are not of width, depth and cutoff are torchmd-net's own defaults. Gradients
are taken for the positions only, as OpenMM-ML and torchmd-net's ASE calculator do.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from benchmarks.speed.candidates import (
    Candidate,
    Dynamics,
    Evaluate,
    Peer,
    Step,
    require,
    topology_of,
)

PACKAGE = "torchmd-net==3.1.*"
_COMMON: dict[str, Any] = {
    "embedding_dimension": 64,
    "num_rbf": 64,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "cutoff_lower": 0.0,
    "cutoff_upper": 5.0,
    "max_z": 100,
    "max_num_neighbors": 128,
    "precision": 32,
    "derivative": False,
    "atom_filter": -1,
    "prior_model": None,
    "output_model": "Scalar",
    "reduce_op": "add",
}
ARGS: dict[str, dict[str, Any]] = {
    "TorchMD-ET 6x64": {
        **_COMMON,
        "model": "equivariant-transformer",
        "num_layers": 6,
        "num_heads": 8,
        "attn_activation": "silu",
        "distance_influence": "both",
        "neighbor_embedding": True,
    },
    "TensorNet 2x64": {
        **_COMMON,
        "model": "tensornet",
        "num_layers": 2,
        "num_rbf": 32,
        "equivariance_invariance_group": "O(3)",
    },
}


def model(name: str) -> Any:
    """The network with random weights, none of which wants a gradient."""
    import torch

    _quiet_warp()
    create = require("torchmdnet.models.model", PACKAGE).create_model
    torch.manual_seed(0)
    return create(dict(ARGS[name])).eval().requires_grad_(False)


def _evaluator(name: str) -> Any:
    def make(atoms: Atoms) -> Evaluate:
        import torch

        net = model(name)
        numbers = torch.tensor(atoms.numbers, dtype=torch.int64)
        periodic = bool(atoms.pbc.any())
        box = torch.tensor(atoms.cell.array, dtype=torch.float32) if periodic else None

        def evaluate(positions: NDArray[np.float64]) -> tuple[float, NDArray[np.floating]]:
            x = torch.tensor(positions, dtype=torch.float32, requires_grad=True)
            energy = net(numbers, x, box=box)[0]
            (gradient,) = torch.autograd.grad(energy.sum(), x)
            return float(energy.detach()), -gradient.numpy()

        return evaluate

    return make


def _calculator(name: str) -> Any:
    def make(atoms: Atoms) -> Any:
        module = require("torchmdnet.calculators", PACKAGE)
        atoms.info.setdefault("charge", 0)  # it reads the charge there
        with checkpoint(name) as path:
            return module.TMDNETCalculator(str(path), max_num_neighbors=128)

    return make


@contextmanager
def checkpoint(name: str) -> Iterator[Path]:
    """A passing file as torchmd-net's training writes it, for adapters that load one."""
    import torch

    weights = {f"model.{key}": value for key, value in model(name).state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.ckpt"
        torch.save({"hyper_parameters": dict(ARGS[name]), "state_dict": weights}, path)
        yield path


PEERS = [
    Peer(f"torchmd-net {name}", _evaluator(name), _calculator(name), random=True, largest=10_000)
    for name in ARGS
]


def openmmml_candidates() -> list[Candidate]:
    """OpenMM-ML 1.8's own adapter, which compiles the network with torch.compile on its first
    step. It cannot compile the transformer (shapes that depend on data), so TensorNet only."""
    name = "TensorNet 2x64"
    return [
        Candidate(
            f"torchmd-net {name}, compiled by OpenMM-ML",
            "OpenMM",
            _openmmml(name),
            largest=150,
            slow_setup=True,
            fixed_threads=True,  # compiled for a number of threads
        )
    ]


def _openmmml(name: str) -> Any:
    def prepare(atoms: Atoms, threads: int) -> Step:
        from openmmml import MLPotential

        logging.getLogger("torch._inductor").setLevel(logging.ERROR)
        # random weights: forces of zero keep the molecule together
        with checkpoint(name) as path:
            potential = MLPotential("torchmdnet", modelPath=str(path), energyScale=0.0)
            system = potential.createSystem(topology_of(atoms), max_num_neighbors=128)
        return Dynamics(atoms, threads, system=system)

    return prepare


def _quiet_warp() -> None:
    """Warp, which compiles torchmd-net's kernels, prints a line about each of them."""
    warp = require("warp", PACKAGE)
    warp.config.log_level = logging.ERROR  # newer than 1.10
    warp.config.quiet = True  # older
