"""AIMNet2 (wB97M-D3), one member: the TorchScript file inside the wheel Auto3D 2.3.1.

The wheel need not be importable (it wants Open Babel); only the file in it is read. All pairs,
no cutoff, no box.
"""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from benchmarks.speed.candidates import Evaluate, NotInstalled, Peer

FILE = "aimnet2_wb97m-d3_0.jpt"


def model_file() -> Path:
    try:
        inside = files("Auto3D") or []
    except PackageNotFoundError as error:
        raise NotInstalled("not installed: pip install --no-deps Auto3D==2.3.1") from error
    for path in inside:
        if path.name == FILE:
            return Path(str(path.locate()))
    raise NotInstalled(f"this Auto3D has no {FILE}: pip install --no-deps Auto3D==2.3.1")


def load() -> Any:
    import torch

    net = torch.jit.load(str(model_file()), map_location="cpu").eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net


def _evaluator(atoms: Atoms) -> Evaluate:
    import torch

    net = load()
    numbers = torch.tensor(atoms.numbers, dtype=torch.int64)[None]
    charge = torch.zeros(1)

    def evaluate(positions: NDArray[np.float64]) -> tuple[float, NDArray[np.floating]]:
        x = torch.tensor(positions, dtype=torch.float32)[None].requires_grad_(True)
        energy = net({"coord": x, "numbers": numbers, "charge": charge})["energy"]
        (gradient,) = torch.autograd.grad(energy.sum(), x)
        return float(energy.detach()), -gradient[0].numpy()

    return evaluate


PEER = Peer("AIMNet2", _evaluator, largest=200, periodic=False)
