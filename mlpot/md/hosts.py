"""The two programs that integrate: OpenMM and ASE, behind the same five methods.

Each host converts between its own units and ours (eV, Å, fs) and nothing else does.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from ase import units as ase_units
from numpy.typing import NDArray

from mlpot.calculator import MLPotCalculator
from mlpot.deploy.load import load
from mlpot.errors import InputError, MLPotError
from mlpot.md.structure import Structure
from mlpot.units import ANGSTROM_TO_NM, KJ_PER_MOL_TO_EV


class Host(Protocol):
    """A system with an integrator."""

    description: str

    def minimize(self, iterations: int) -> None:
        """Go downhill, at most this many iterations."""

    def set_velocities(self, velocities: NDArray[np.float64]) -> None:
        """[N, 3] Å/fs"""

    def step(self, steps: int) -> None:
        """Integrate."""

    def positions(self) -> NDArray[np.float64]:
        """[N, 3] Å"""

    def energies(self) -> tuple[float, float]:
        """Potential and kinetic energy, eV."""


class OpenMMHost:
    """OpenMM, through OpenMM-ML.

    Args:
        engine: ``auto``, ``compiled``, ``torchforce`` or ``python``.
        platform: an OpenMM platform; None takes the fastest of CUDA and CPU that works.
        note: told what the user should know.
    """

    def __init__(
        self,
        structure: Structure,
        model: str | Path,
        *,
        timestep: float,
        temperature: float,
        friction: float,
        ensemble: str,
        seed: int,
        engine: str = "auto",
        dtype: str | None = None,
        platform: str | None = None,
        note: Callable[[str], None] = print,
    ):
        import openmm
        from openmm import unit
        from openmmml import MLPotential

        options = {"engine": engine} | ({} if dtype is None else {"dtype": dtype})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            potential = MLPotential("mlpot", model=str(model))
            system = potential.createSystem(structure.topology, removeCMMotion=True, **options)
        for warning in caught:
            text = str(warning.message)
            if text.startswith("mlpot"):  # what follows is for those who keep the System
                note(text.partition(". Such a System")[0])
        dt = timestep * unit.femtosecond
        if ensemble == "nvt":
            self._integrator = openmm.LangevinMiddleIntegrator(
                temperature * unit.kelvin, friction / unit.picosecond, dt
            )
            self._integrator.setRandomNumberSeed(seed + 1)  # 0 means a new seed every time
        else:
            self._integrator = openmm.VerletIntegrator(dt)
        self._context = _context(openmm, system, self._integrator, platform)
        self._context.setPositions(structure.positions * unit.angstrom)
        self.description = f"OpenMM {openmm.version.short_version}, platform " + (
            self._context.getPlatform().getName()
        )

    def minimize(self, iterations: int) -> None:
        import openmm

        self._guarded(lambda: openmm.LocalEnergyMinimizer.minimize(self._context, 10.0, iterations))

    def set_velocities(self, velocities: NDArray[np.float64]) -> None:
        from openmm import unit

        self._context.setVelocities(velocities * (unit.angstrom / unit.femtosecond))

    def step(self, steps: int) -> None:
        self._guarded(lambda: self._integrator.step(steps))

    def positions(self) -> NDArray[np.float64]:
        # not enforcePeriodicBox: OpenMM knows no bonds here, and would tear molecules apart
        state = self._context.getState(getPositions=True)
        return np.asarray(state.getPositions(asNumpy=True)._value) / ANGSTROM_TO_NM

    def energies(self) -> tuple[float, float]:
        state = self._guarded(lambda: self._context.getState(getEnergy=True))
        return (
            state.getPotentialEnergy()._value * KJ_PER_MOL_TO_EV,
            state.getKineticEnergy()._value * KJ_PER_MOL_TO_EV,
        )

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Exceptions of OpenMM as ours; an mlpot error from inside a PythonForce stays one."""
        import openmm

        try:
            return call()
        except openmm.OpenMMException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise MLPotError(lines[-1] if lines else "OpenMM stopped without a message") from error


class AseHost:
    """ASE. The same arguments; ``platform`` is cpu or cuda, ``engine`` one of mlpot's."""

    def __init__(
        self,
        structure: Structure,
        model: str | Path,
        *,
        timestep: float,
        temperature: float,
        friction: float,
        ensemble: str,
        seed: int,
        engine: str = "auto",
        dtype: str | None = None,
        platform: str | None = None,
        note: Callable[[str], None] = print,
    ):
        import ase
        from ase.constraints import FixCom
        from ase.md.langevin import Langevin
        from ase.md.verlet import VelocityVerlet

        self._atoms = Atoms(
            structure.numbers,
            structure.positions,
            masses=structure.masses,
            cell=structure.box,
            pbc=structure.box is not None,
        )
        device = "auto" if platform is None else platform.lower()
        try:
            loaded = load(model, engine, dtype, device)
        except RuntimeError as error:  # torch, about a device that is not there
            raise InputError(
                f"platform {platform!r} cannot be used here ({str(error).splitlines()[0]}). With "
                "ase it is a torch device: cpu, or cuda where there is a GPU"
            ) from error
        loaded.bind(structure.numbers)  # refuses what it does not cover before the first step
        self._atoms.calc = MLPotCalculator(loaded)
        self._atoms.set_constraint(FixCom())
        dt = timestep * ase_units.fs
        self._dynamics: Any
        if ensemble == "nvt":
            self._dynamics = Langevin(
                self._atoms,
                dt,
                temperature_K=temperature,
                friction=friction / (1000 * ase_units.fs),
                fixcm=False,  # FixCom instead: fixcm samples a slightly wrong ensemble
                rng=np.random.RandomState(seed),
            )
        else:
            self._dynamics = VelocityVerlet(self._atoms, dt)
        self.description = f"ASE {ase.__version__}, {loaded.engine} on {loaded.device}"

    def minimize(self, iterations: int) -> None:
        from ase.optimize import LBFGS

        LBFGS(self._atoms, logfile=os.devnull).run(fmax=0.1, steps=iterations)

    def set_velocities(self, velocities: NDArray[np.float64]) -> None:
        self._atoms.set_velocities(velocities / ase_units.fs)

    def step(self, steps: int) -> None:
        for _ in range(steps):
            self._dynamics.step()

    def positions(self) -> NDArray[np.float64]:
        return self._atoms.get_positions()

    def energies(self) -> tuple[float, float]:
        return float(self._atoms.get_potential_energy()), float(self._atoms.get_kinetic_energy())


HOSTS: dict[str, Callable[..., Host]] = {"openmm": OpenMMHost, "ase": AseHost}


def _context(openmm: Any, system: Any, integrator: Any, platform: str | None) -> Any:
    known = [
        openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
    ]
    if platform is not None:
        name = {k.lower(): k for k in known}.get(platform.lower())
        if name is None:
            raise InputError(f"no OpenMM platform {platform!r} here; there are {', '.join(known)}")
        choices = [name]
    else:
        choices = [name for name in ("CUDA", "CPU", "Reference") if name in known]
    for name in choices:
        chosen = openmm.Platform.getPlatformByName(name)
        # OpenMM's own loops are nothing beside the model, whose threads are torch's.
        properties = {"Threads": "1"} if name == "CPU" else {}
        try:
            return openmm.Context(system, integrator, chosen, properties)
        except openmm.OpenMMException as error:
            # A CUDA platform without a usable device is only found out here.
            if name == choices[-1]:
                raise MLPotError(f"OpenMM cannot use its platform {name}: {error}") from error
    raise MLPotError("this OpenMM has no platform; install it again")
