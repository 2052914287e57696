"""SO3LR (so3krates-torch 0.2.1): pretrained, with long-range terms; an ASE calculator only."""

from typing import Any

from ase import Atoms

from benchmarks.speed.candidates import Evaluate, Peer, by_calculator, require

PACKAGE = "so3krates-torch==0.2.1"


def _calculator(atoms: Atoms) -> Any:
    import torch

    module = require("so3krates_torch.calculator.so3", PACKAGE)
    calculator = module.SO3LRCalculator(default_dtype="float32")
    torch.set_default_dtype(torch.float32)
    return calculator


def _evaluator(atoms: Atoms) -> Evaluate:
    return by_calculator(_calculator(atoms), atoms)


PEER = Peer("SO3LR", _evaluator, _calculator, largest=1500)
