"""GFN2-xTB (tblite): not a network, but what many would run instead. Each call starts from the
last density, as in dynamics. Threads are OpenMP's of its own library, read at start."""

from typing import Any

from ase import Atoms

from benchmarks.speed.candidates import Evaluate, Peer, by_calculator, require

PACKAGE = "tblite"


def _calculator(atoms: Atoms) -> Any:
    return require("tblite.ase", PACKAGE).TBLite(method="GFN2-xTB", verbosity=0)


def _evaluator(atoms: Atoms) -> Evaluate:
    return by_calculator(_calculator(atoms), atoms)


PEER = Peer("GFN2-xTB", _evaluator, _calculator, largest=200, periodic=False, fixed_threads=True)
