"""ANI-1x (torchani 2.2.4): the eight-member ensemble that users run, and one member of it.

ANI-2x's weights are downloaded from GitHub at first use; the wheel holds those of ANI-1x, but its
index file for them is empty, so they are read from their folder here.
"""

import sys
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from benchmarks.speed.candidates import Evaluate, NotSupported, Peer, require

PACKAGE = "torchani==2.2.4"
MEMBERS = 8


def model(members: int) -> Any:
    """(numbers, positions Å) -> hartree."""
    import torch

    _stand_in_for_pkg_resources()
    torchani = require("torchani", PACKAGE)
    neurochem = require("torchani.neurochem", PACKAGE)
    folder = Path(torchani.__file__).parent / "resources" / "ani-1x_8x"
    constants = neurochem.Constants(str(next(folder.glob("*.params"))))
    networks = neurochem.load_model_ensemble(constants.species, str(folder / "train"), MEMBERS)
    return torch.nn.Sequential(
        torchani.nn.SpeciesConverter(constants.species),
        torchani.AEVComputer(**constants),
        networks if members == MEMBERS else networks[0],
        neurochem.load_sae(str(folder / "sae_linfit.dat")),
    ).requires_grad_(False)


def _stand_in_for_pkg_resources() -> None:
    """torchani asks it for its own version, and torchmd-net's setuptools (82) has it no more."""
    if "pkg_resources" not in sys.modules and find_spec("pkg_resources") is None:
        module: Any = ModuleType("pkg_resources")
        module.get_distribution = metadata.distribution
        module.DistributionNotFound = metadata.PackageNotFoundError
        sys.modules["pkg_resources"] = module


def _evaluator(atoms: Atoms, members: int) -> Evaluate:
    import torch

    if not set(atoms.numbers) <= {1, 6, 7, 8}:
        raise NotSupported("ANI-1x covers H, C, N, O")
    convert, symmetry, networks, shift = model(members)
    numbers = torch.tensor(atoms.numbers, dtype=torch.int64)[None]
    periodic = bool(atoms.pbc.any())
    cell = torch.tensor(atoms.cell.array, dtype=torch.float32) if periodic else None
    pbc = torch.tensor(atoms.pbc) if periodic else None

    def evaluate(positions: NDArray[np.float64]) -> tuple[float, NDArray[np.floating]]:
        x = torch.tensor(positions, dtype=torch.float32)[None].requires_grad_(True)
        energy = shift(networks(symmetry(convert((numbers, x)), cell=cell, pbc=pbc))).energies
        (gradient,) = torch.autograd.grad(energy.sum(), x)
        return float(energy.detach()) * units.Hartree, -gradient[0].numpy() * units.Hartree

    return evaluate


PEERS = [
    Peer("ANI-1x, 8 members", partial(_evaluator, members=MEMBERS)),
    Peer("ANI-1x, 1 member", partial(_evaluator, members=1)),
]
