"""mlpot as candidates: every engine, by every route. Engines are looked up, not listed here."""

from collections.abc import Callable

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from benchmarks.speed.candidates import (
    Candidate,
    Dynamics,
    Evaluate,
    Step,
    direct,
    through_ase,
    topology_of,
)

MODEL = "pretrained-visnet"
OURS = "mlpot"
#: engine -> atoms above which it is left out; these hold 3.4 MB an atom of intermediates at once
LARGEST = {"torchscript": 1500, "torchforce": 1500}


def candidates() -> list[Candidate]:
    from mlpot.deploy.engines import ENGINES

    found = []
    for engine in ENGINES:
        largest = LARGEST.get(engine, 10_000)
        found.append(Candidate(f"{OURS} {engine}", "direct", _direct(engine), largest))
        found.append(Candidate(f"{OURS} {engine}", "ASE", _ase(engine), largest))
    return found + [
        Candidate(f"{OURS} {engine}", "OpenMM", _openmm(engine), LARGEST.get(engine, 10_000))
        for engine in openmm_engines()
    ]


def openmm_engines() -> list[str]:
    """Engines of the OpenMM plugin; ``auto`` is one of the others, and ``python`` takes the
    compiled engine where that is in the cache, as it is here."""
    from mlpot_openmm.force import ENGINES

    return [engine for engine in ENGINES if engine not in ("auto", "python")]


def evaluator(engine: str, atoms: Atoms) -> Evaluate:
    from mlpot.deploy.load import load

    bound = load(MODEL, engine=engine, device="cpu").bind(atoms.numbers, bool(atoms.pbc.all()))
    cell = atoms.cell.array if atoms.pbc.any() else None

    def evaluate(positions: NDArray[np.float64]) -> tuple[float, NDArray[np.floating]]:
        result = bound(positions, cell)
        return result.energy, result.forces

    return evaluate


def _direct(engine: str) -> Callable[[Atoms, int], Step]:
    return lambda atoms, threads: direct(evaluator(engine, atoms), atoms)


def _ase(engine: str) -> Callable[[Atoms, int], Step]:
    def prepare(atoms: Atoms, threads: int) -> Step:
        from mlpot import MLPotCalculator

        return through_ase(MLPotCalculator(MODEL, engine=engine, device="cpu"), atoms)

    return prepare


def _openmm(engine: str) -> Callable[[Atoms, int], Step]:
    def prepare(atoms: Atoms, threads: int) -> Step:
        import warnings

        from openmmml import MLPotential

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the notice that says which engine runs
            system = MLPotential(MODEL).createSystem(
                topology_of(atoms), engine=engine, device="cpu"
            )
        return Dynamics(atoms, threads, system=system)

    return prepare
