"""MACE at the size of MACE-OFF23-small, random weights (the released ones are not on PyPI).

Size: 96x0e, 2 interactions, correlation 3, max_ell 3, 8 Bessel functions, r_max 4.5 Å. These are
what deepmd-gnn's test `test_infer_config_from_real_off23_small_checkpoint` reads from the released
file. 694,320 parameters.
"""

from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from benchmarks.speed.candidates import Evaluate, Peer, require

PACKAGE = "mace-torch==0.3.16"
CUTOFF = 4.5
ELEMENTS = [1, 6, 7, 8, 9, 15, 16, 17, 35, 53]


def model() -> Any:
    import torch

    modules = require("mace.modules", PACKAGE)  # before e3nn: it lets torch load e3nn's constants
    o3 = require("e3nn", "e3nn==0.4.4").o3
    torch.manual_seed(0)
    blocks = modules.interaction_classes
    return (
        modules.ScaleShiftMACE(
            r_max=CUTOFF,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=blocks["RealAgnosticInteractionBlock"],
            num_interactions=2,
            num_elements=len(ELEMENTS),
            hidden_irreps=o3.Irreps("96x0e"),
            MLP_irreps=o3.Irreps("16x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.zeros(len(ELEMENTS)),
            avg_num_neighbors=15.0,
            atomic_numbers=ELEMENTS,
            correlation=3,
            radial_MLP=[64, 64, 64],
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
        )
        .float()
        .eval()
        .requires_grad_(False)
    )


def _calculator(atoms: Atoms) -> Any:
    net = model()
    calculators = require("mace.calculators", PACKAGE)
    return calculators.MACECalculator(models=[net], device="cpu", default_dtype="float32")


def _evaluator(atoms: Atoms) -> Evaluate:
    """The TorchScript form that OpenMM-ML uses, with a Verlet list."""
    import torch

    from mlpot.neighbors import SKIN, NeighborFinder

    net = model()
    net = require("e3nn.util.jit", "e3nn==0.4.4").compile(net)
    finder = NeighborFinder(CUTOFF, SKIN)
    cell = atoms.cell.array if atoms.pbc.any() else None
    kinds = torch.tensor([ELEMENTS.index(z) for z in atoms.numbers])
    fixed = {
        "node_attrs": torch.nn.functional.one_hot(kinds, len(ELEMENTS)).float(),
        "batch": torch.zeros(len(atoms), dtype=torch.int64),
        "ptr": torch.tensor([0, len(atoms)]),
        "head": torch.zeros(1, dtype=torch.int64),
        "cell": torch.tensor(np.zeros((3, 3)) if cell is None else cell, dtype=torch.float32),
    }

    def evaluate(positions: NDArray[np.float64]) -> tuple[float, NDArray[np.floating]]:
        edges, shifts = finder(positions, cell, atoms.pbc)
        out = net(
            {
                **fixed,
                "positions": torch.tensor(positions, dtype=torch.float32, requires_grad=True),
                "edge_index": torch.from_numpy(edges),
                "shifts": torch.from_numpy(shifts).float(),
                "unit_shifts": torch.zeros(edges.shape[1], 3),
            },
            compute_force=True,
        )
        return float(out["energy"]), out["forces"].detach().numpy()

    return evaluate


PEER = Peer("MACE, size of OFF23-small", _evaluator, _calculator, random=True, largest=1500)
