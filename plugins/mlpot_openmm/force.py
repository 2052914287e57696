"""The two ways into OpenMM: TorchForce (C++ runs the scripted model) and PythonForce (Python
runs any engine; the compiled one is the fastest on a CPU).

Units are converted here and nowhere else: OpenMM speaks nm and kJ/mol.
"""

import contextlib
import importlib
import logging
import subprocess
import sys
import tempfile
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from torch import Tensor, nn

from mlpot.deploy.engines import BoundModel
from mlpot.deploy.load import load, starts_compiled
from mlpot.deploy.metadata import check_system
from mlpot.deploy.standalone import Standalone, standalone
from mlpot.errors import InputError, MissingDependencyError
from mlpot.units import ANGSTROM_TO_NM, EV_TO_KJ_PER_MOL, NM_TO_ANGSTROM
from mlpot.zoo import resolve

ENGINES = ("auto", "torchforce", "python", "compiled")
FORCE_UNIT = EV_TO_KJ_PER_MOL / ANGSTROM_TO_NM  # eV/Å -> kJ/mol/nm

#: (openmmtorch, torch) that are known to work together; others are tried out first
KNOWN_GOOD = (("1.5", "2.9"),)


def make_force(
    model: str,
    numbers: list[int],
    periodic: bool,
    subset: list[int] | None = None,
    engine: str = "auto",
    dtype: str | None = None,
    device: str = "auto",
    charge: float = 0,
    multiplicity: int = 1,
) -> tuple[openmm.Force, str]:
    """The OpenMM force for a model, and what the user should know about it.

    Args:
        model: zoo name or model file.
        numbers: atomic numbers of the atoms that the model describes.
        subset: their indices in the System; None if they are all of it.

    Raises:
        UnsupportedSystemError: the model does not cover these atoms, charge or multiplicity.
        MissingDependencyError: ``engine="torchforce"`` where openmm-torch does not work.
    """
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    path = resolve(model)
    reason = f"engine={engine!r}"
    if engine in ("auto", "torchforce"):
        reason = _why_not_torchforce(path, dtype, subset)
    if engine == "torchforce" and path.suffix == ".pt2":
        raise InputError(f"{path} is compiled for Python; TorchForce needs weights or a .pt file")
    if engine == "torchforce" and openmmtorch_problem():
        raise MissingDependencyError(f"{reason}. Use engine='python', or install one that fits")
    if engine == "torchforce" or not reason:
        loaded = load(path, "torchscript", dtype, "cpu")  # the Context moves it to its own device
        check_system(loaded.info, numbers, charge, multiplicity)
        inner = standalone(loaded, numbers, periodic, charge)
        notice = (
            f"mlpot runs {model} through TorchForce, because openmm-torch works here. Such a "
            "System cannot be copied or read back from XML (openmm-torch 1.5 crashes the process "
            "in XmlSerializer.deserialize); for that use createSystem(..., engine='python')"
        )
        return _torch_force(inner, periodic, subset), notice
    inside = "compiled" if engine == "compiled" else "auto"
    compute = ModelForce(path, numbers, periodic, inside, dtype, device, charge, multiplicity)
    notice = f"mlpot runs {model} through openmm.PythonForce, because {reason}"
    return _python_force(compute, periodic, subset), notice if engine == "auto" else ""


def _why_not_torchforce(path: Path, dtype: str | None, subset: list[int] | None) -> str:
    """Why ``auto`` takes PythonForce; empty if it takes TorchForce."""
    if not torch.cuda.is_available() and starts_compiled(path, dtype):
        return "its compiled engine is there, which is faster on a CPU"
    count = openmm.Platform.getNumPlatforms()
    platforms = [openmm.Platform.getPlatform(i).getName() for i in range(count)]
    if torch.cuda.is_available() and "CUDA" not in platforms:
        return (
            "torch sees a GPU, but this OpenMM has no CUDA platform (pip install 'mlpot[cuda]'), "
            "and TorchForce would run on the CPU"
        )
    if subset is not None and not openmmtorch_problem():
        return (
            "mixed systems are copied on the way (interpolate=True), which crashes openmm-torch 1.5"
        )
    return openmmtorch_problem()


# --- TorchForce ----------------------------------------------------------------------------


class TorchModule(nn.Module):
    """nm in, kJ/mol and kJ/mol/nm out, for all atoms or for some; not periodic."""

    subset: Tensor

    def __init__(self, inner: Standalone, subset: list[int] | None):
        super().__init__()
        self.inner = inner
        self.whole = subset is None
        self.energy_unit = EV_TO_KJ_PER_MOL
        self.force_unit = FORCE_UNIT
        self.length_unit = NM_TO_ANGSTROM
        self.register_buffer("subset", torch.tensor(subset or [], dtype=torch.int64))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cell = torch.zeros([3, 3], dtype=positions.dtype, device=positions.device)
        return self.evaluate(positions, cell)

    def evaluate(self, positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        x = positions if self.whole else positions.index_select(0, self.subset)
        energy, forces = self.inner(x * self.length_unit, cell * self.length_unit)
        forces = (forces * self.force_unit).to(positions.dtype)
        if not self.whole:
            forces = torch.zeros_like(positions).index_copy(0, self.subset, forces)
        return energy * self.energy_unit, forces


class PeriodicTorchModule(TorchModule):
    """The same with the box, which TorchForce hands over as a second argument."""

    def forward(self, positions: Tensor, boxvectors: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.evaluate(positions, boxvectors)


def _torch_force(inner: Standalone, periodic: bool, subset: list[int] | None) -> openmm.Force:
    import openmmtorch

    module = (PeriodicTorchModule if periodic else TorchModule)(inner, subset)
    force = openmmtorch.TorchForce(torch.jit.script(module.eval()))
    force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


@lru_cache(maxsize=1)
def openmmtorch_problem() -> str:
    """Why openmm-torch cannot be used here; empty if it can.

    A plugin built for another torch may import and then take the process down at its first
    energy call, so combinations not known to work are tried in a process of their own.
    """
    try:
        have = version("openmmtorch")
    except PackageNotFoundError:
        return "openmm-torch is not installed (pip install openmmtorch)"
    pair = (have, ".".join(torch.__version__.split(".")[:2]))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it warns that simtk.openmm, which it imports, is deprecated
    try:
        importlib.import_module("openmmtorch")
    except Exception as error:  # whatever a broken extension raises
        return f"openmmtorch {have} cannot be imported with torch {torch.__version__} ({error})"
    finally:
        root.setLevel(level)
    failure = "" if pair in KNOWN_GOOD else _tried_apart()
    if failure:
        return f"openmmtorch {have} does not work with torch {torch.__version__} ({failure})"
    if not _kernels_loaded():
        return f"openmmtorch {have} has no kernels for this OpenMM {openmm.__version__}"
    return ""


def _tried_apart() -> str:
    """How a first energy fails in a process of its own; empty if it does not."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "it hangs"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or ["it crashed"])[-1]


def _kernels_loaded() -> bool:
    """Whether OpenMM has the plugin's kernels; loads them if it could not at its own import.

    OpenMM looks for plugins when it is imported. Where that came before torch, the plugin's
    libraries found no libtorch and were left out; now they do.
    """
    reference = openmm.Platform.getPlatformByName("Reference")
    if not reference.supportsKernels(["CalcTorchForce"]):
        folder = Path(openmm.version.openmm_library_path) / "plugins"
        for library in sorted(folder.glob("libOpenMMTorch*")):
            with contextlib.suppress(openmm.OpenMMException):  # a GPU that is not there
                openmm.Platform.loadPluginLibrary(str(library))
    return reference.supportsKernels(["CalcTorchForce"])


_TRY = """
import torch, openmm, openmmtorch
class Square(torch.nn.Module):
    def forward(self, positions):
        return (positions * positions).sum()
system = openmm.System()
system.addParticle(1.0)
system.addForce(openmmtorch.TorchForce(torch.jit.script(Square())))
platform = openmm.Platform.getPlatformByName("Reference")
context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
context.setPositions([openmm.Vec3(1, 2, 3)])
energy = context.getState(getEnergy=True).getPotentialEnergy()._value
assert abs(energy - 14) < 1e-4, energy
"""


# --- PythonForce ---------------------------------------------------------------------------


class ModelForce:
    """What PythonForce calls. Pickles with the model's file inside, so that a serialised
    System is complete; every instance has a model of its own."""

    def __init__(
        self,
        path: Path,
        numbers: list[int],
        periodic: bool,
        engine: str,
        dtype: str | None,
        device: str,
        charge: float = 0,
        multiplicity: int = 1,
    ):
        self._options: dict[str, Any] = {
            "suffix": path.suffix,
            "numbers": list(numbers),
            "periodic": periodic,
            "engine": engine,
            "dtype": dtype,
            "device": device,
            "charge": charge,
            "multiplicity": multiplicity,
        }
        self._file = path.read_bytes()
        self._bound = self._bind(path)

    def _bind(self, path: Path) -> BoundModel:
        o = self._options
        model = load(path, o["engine"], o["dtype"], o["device"])
        return model.bind(o["numbers"], o["periodic"], o["charge"], o["multiplicity"])

    def __getstate__(self) -> dict[str, Any]:
        return {"_options": self._options, "_file": self._file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._options, self._file = state["_options"], state["_file"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"model{self._options['suffix']}"
            path.write_bytes(self._file)
            self._bound = self._bind(path)

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        positions = state.getPositions(asNumpy=True)._value * NM_TO_ANGSTROM
        cell = None
        if self._options["periodic"]:
            cell = state.getPeriodicBoxVectors(asNumpy=True)._value * NM_TO_ANGSTROM
        result = self._bound(positions, cell)
        return result.energy * EV_TO_KJ_PER_MOL, result.forces * FORCE_UNIT


def _python_force(compute: ModelForce, periodic: bool, subset: list[int] | None) -> openmm.Force:
    force = openmm.PythonForce(compute)
    force.setUsesPeriodicBoundaryConditions(periodic)
    if subset is not None:
        force.setParticles(subset)
    return force
