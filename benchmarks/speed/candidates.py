"""Candidate: something that can be timed. A peer becomes one by each route that it has.

Routes: ``direct`` (positions in, energy and forces out), ``ASE`` (its own calculator) and
``OpenMM`` (one step of Langevin dynamics, 0.5 fs, 300 K, platform CPU).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlpot.units import ANGSTROM_TO_NM, EV_TO_KJ_PER_MOL, NM_TO_ANGSTROM

#: [N, 3] Å -> eV, [N, 3] eV/Å
Evaluate = Callable[[NDArray[np.float64]], tuple[float, NDArray[np.floating]]]
#: one evaluation, or one step of dynamics
Step = Callable[[], object]

JITTER = 1e-3  # Å; every call sees new positions, so nothing can be cached


class NotInstalled(Exception):
    """A peer that is absent here."""


class NotSupported(Exception):
    """A system that a candidate cannot do."""


def require(module: str, package: str) -> Any:
    """Import a peer, or raise NotInstalled with what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        raise NotInstalled(f"not installed: pip install {package} ({error})") from error


@dataclass(frozen=True)
class Candidate:
    """One row of the results.

    Attributes:
        name: model and variant.
        route: ``direct``, ``ASE`` or ``OpenMM``.
        prepare: (atoms, threads) -> step; may raise NotInstalled or NotSupported.
        largest: atoms; larger systems are left out (time or memory would run away).
        periodic: whether it takes a box.
        slow_setup: compiles for more than a minute; left out of ``--mode dev``.
        fixed_threads: the thread count is read once, so it is timed with that of the process only.
    """

    name: str
    route: str
    prepare: Callable[[Atoms, int], Step]
    largest: int = 10_000
    periodic: bool = True
    slow_setup: bool = False
    fixed_threads: bool = False

    def check(self, atoms: Atoms) -> None:
        """Raise NotSupported for a system that it cannot do."""
        if atoms.pbc.any() and not self.periodic:
            raise NotSupported("no periodic systems")
        if len(atoms) > self.largest:
            raise NotSupported(f"left out above {self.largest} atoms")


@dataclass(frozen=True)
class Peer:
    """Somebody else's potential.

    Attributes:
        evaluator: atoms -> Evaluate.
        calculator: atoms -> ASE calculator; None if the package has none.
        random: weights are random, so OpenMM sees zero forces (the same work, no explosion).
        others: as in Candidate.
    """

    name: str
    evaluator: Callable[[Atoms], Evaluate]
    calculator: Callable[[Atoms], Any] | None = None
    random: bool = False
    largest: int = 1500
    periodic: bool = True
    fixed_threads: bool = False

    def candidates(self) -> list[Candidate]:
        routes: dict[str, Callable[[Atoms, int], Step]] = {
            "direct": lambda atoms, threads: direct(self.evaluator(atoms), atoms),
            "OpenMM": lambda atoms, threads: through_openmm(
                self.evaluator(atoms), atoms, threads, scale=0.0 if self.random else 1.0
            ),
        }
        if self.calculator is not None:
            make = self.calculator
            routes["ASE"] = lambda atoms, threads: through_ase(make(atoms), atoms)
        return [
            Candidate(
                self.name,
                route,
                prepare,
                largest=self.largest,
                periodic=self.periodic,
                fixed_threads=self.fixed_threads,
            )
            for route, prepare in routes.items()
        ]


def jittered(positions: NDArray[np.float64], count: int = 16) -> Callable[[], NDArray[np.float64]]:
    """Endless slightly different copies, made beforehand."""
    rng = np.random.default_rng(0)
    copies = [positions + rng.normal(0.0, JITTER, positions.shape) for _ in range(count)]
    endless = cycle(copies)
    return lambda: next(endless)


def direct(evaluate: Evaluate, atoms: Atoms) -> Step:
    """Energy and forces of one geometry."""
    positions = jittered(atoms.positions)
    return lambda: evaluate(positions())


def through_ase(calculator: Any, atoms: Atoms) -> Step:
    """Energy and forces through an ASE calculator."""
    evaluate = by_calculator(calculator, atoms)
    return direct(evaluate, atoms)


def by_calculator(calculator: Any, atoms: Atoms) -> Evaluate:
    """For packages whose only entrance is an ASE calculator."""
    moving = atoms.copy()
    moving.calc = calculator

    def evaluate(positions: NDArray[np.float64]) -> tuple[float, NDArray[np.floating]]:
        moving.positions = positions
        forces = moving.get_forces()
        return moving.get_potential_energy(), forces

    return evaluate


class PythonForceCall:
    """What openmm.PythonForce calls: as OpenMM-ML's own adapters do it."""

    def __init__(self, evaluate: Evaluate, scale: float):
        self.evaluate = evaluate
        self.scale = scale * EV_TO_KJ_PER_MOL

    def __call__(self, state: Any) -> tuple[float, NDArray[np.float64]]:
        positions = state.getPositions(asNumpy=True)._value * NM_TO_ANGSTROM
        energy, forces = self.evaluate(positions)
        forces = np.asarray(forces, dtype=np.float64) * (self.scale / ANGSTROM_TO_NM)
        return energy * self.scale, forces


def through_openmm(evaluate: Evaluate, atoms: Atoms, threads: int, scale: float = 1.0) -> Step:
    """One step of dynamics in OpenMM, the evaluation through a PythonForce."""
    import openmm

    def add(system: Any) -> None:
        force = openmm.PythonForce(PythonForceCall(evaluate, scale))
        force.setUsesPeriodicBoundaryConditions(bool(atoms.pbc.any()))
        system.addForce(force)

    return Dynamics(atoms, threads, add)


def topology_of(atoms: Atoms) -> Any:
    """An OpenMM topology: one residue, no bonds."""
    from openmm import Vec3, app, unit

    topology = app.Topology()
    residue = topology.addResidue("ALL", topology.addChain())
    for number in atoms.numbers:
        topology.addAtom("X", app.Element.getByAtomicNumber(int(number)), residue)
    if atoms.pbc.any():
        rows = [Vec3(*row) for row in atoms.cell.array * ANGSTROM_TO_NM]
        topology.setPeriodicBoxVectors(rows * unit.nanometer)
    return topology


class Dynamics:
    """A Langevin simulation in OpenMM's CPU platform; calling it makes one step.

    ``reset`` puts the atoms back, so that every round times the same stretch of trajectory.

    Args:
        make: given an empty System with the particles, add the force; or None.
        system: a System that has its force already (from OpenMM-ML).
    """

    def __init__(
        self,
        atoms: Atoms,
        threads: int,
        make: Callable[[Any], None] | None = None,
        system: Any = None,
    ):
        import openmm
        from openmm import unit

        if system is None:
            system = openmm.System()
            for mass in atoms.get_masses():
                system.addParticle(float(mass))
            if atoms.pbc.any():
                system.setDefaultPeriodicBoxVectors(*(atoms.cell.array * ANGSTROM_TO_NM))
        if make is not None:
            make(system)
        self._integrator = openmm.LangevinMiddleIntegrator(
            300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond
        )
        self._integrator.setRandomNumberSeed(1)
        platform = openmm.Platform.getPlatformByName("CPU")
        self._context = openmm.Context(
            system, self._integrator, platform, {"Threads": str(threads)}
        )
        self._start = atoms.positions * ANGSTROM_TO_NM
        self.reset()

    def reset(self) -> None:
        self._context.setPositions(self._start)
        self._context.setVelocitiesToTemperature(300.0, 1)

    def __call__(self) -> None:
        self._integrator.step(1)
