"""How to run, what came of it, and where it goes; for one system and for many replicas."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mlpot.errors import InputError
from mlpot.md.hosts import HOSTS
from mlpot.md.reporters import FORMATS, Frame

#: steps between updates of the progress bar
CHUNK = 25

#: iterations of the minimisation: takes out bad contacts, not more
MINIMIZE = 200

#: up to this many atoms, of all replicas together, the model runs on one CPU thread by default.
#: A second one gains a fifth on a free machine, and costs a factor of ten where another program
#: wants the core. (32 replicas of ethanol, 288 atoms: it gains two thirds.)
ONE_THREAD = 100

#: steps, of all replicas together, from which a minute of compiling pays
LONG = 20_000

#: what a run writes, as patterns
FILES = (
    "topology.pdb",
    "trajectory.dcd",
    "trajectory.xtc",
    "replica_[0-9]*.dcd",
    "replica_[0-9]*.xtc",
    "log.csv",
    "energy.png",
    "final.pdb",
    "run.json",
    "extrapolated.xyz",
)

#: what the guard may do; auto warns where the model's file says what it was trained on
GUARDS = ("auto", "warn", "save", "stop", "off")


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        host: what integrates a single system: ``openmm`` or ``ase``. Several replicas are
            integrated by `mlpot.md.replicas`.
        replicas: number of copies, with seeds seed, seed + 1, ..., advanced together.
        steps: number of time steps.
        timestep: fs.
        temperature: K, of the starting velocities and of the thermostat.
        friction: 1/ps, of the Langevin thermostat (nvt).
        ensemble: ``nvt`` (Langevin) or ``nve`` (constant energy).
        seed: of velocities and thermostat.
        report_interval: steps between frames; row i of the log is frame i.
        trajectory_format: ``dcd`` or ``xtc``.
        engine: what runs the model: for openmm ``auto``, ``compiled``, ``torchforce`` or
            ``python``; for ase and for replicas ``auto`` or one of `mlpot.deploy.engines.ENGINES`.
            ``auto`` compiles for long runs.
        dtype: ``float32`` or ``float64``; None is the model's own.
        platform: OpenMM platform, or for ase and for replicas ``cpu`` or ``cuda``; None chooses.
        threads: CPU threads of the model; None is one for up to 100 atoms (of all replicas), else
            torch's choice.
        minimize: go downhill first, so that bad contacts do not become heat.
        guard: where the run leaves what the model was trained on (`mlpot.md.guard`): ``warn``,
            ``save`` the frames as well, ``stop``, or ``off``; ``auto`` warns where the model's
            file holds the statistics for it.
        guard_model: ``.safetensors`` file with the statistics, where the model was exported from
            it. Several with commas between are a committee: the larger grade counts, of the
            first one's features or of their disagreement about forces.
        guard_unit: eV/Å of such disagreement at grade 1; None is three times the force error that
            the members' files tell of frames held back.

    Raises:
        InputError: a value that makes no sense.
    """

    host: Literal["openmm", "ase"] = "openmm"
    steps: int = 2000
    timestep: float = 0.5
    temperature: float = 300.0
    friction: float = 10.0
    ensemble: Literal["nvt", "nve"] = "nvt"
    seed: int = 0
    report_interval: int = 20
    trajectory_format: Literal["dcd", "xtc"] = "dcd"
    engine: str = "auto"
    dtype: str | None = None
    platform: str | None = None
    threads: int | None = None
    minimize: bool = True
    replicas: int = 1
    guard: Literal["auto", "warn", "save", "stop", "off"] = "auto"
    guard_model: str | None = None
    guard_unit: float | None = None

    def __post_init__(self) -> None:
        choices = {
            "host": HOSTS,
            "ensemble": ("nvt", "nve"),
            "trajectory_format": FORMATS,
            "guard": GUARDS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                got = getattr(self, name)
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {got!r}")
        for name in ("steps", "report_interval", "timestep", "threads", "replicas", "guard_unit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("temperature", "friction", "seed"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class Summary:
    """What came of a run."""

    steps: int  # done; fewer than asked for if interrupted
    time: float  # ps
    seconds: float  # wall time of the steps, writing included
    steps_per_second: float
    ns_per_day: float
    mean_temperature: float  # K, over the second half
    #: meV per atom and ps, slope of the total energy; None with a thermostat or one frame
    energy_drift: float | None
    interrupted: bool
    files: dict[str, Path] = field(default_factory=dict)
    replicas: int = 1
    replica_steps: int = 0  # of all replicas together; steps above are those of each
    lost: dict[int, int] = field(default_factory=dict)  # replica -> steps before it broke
    guard: dict[str, Any] | None = None  # `Guard.told`; None without one

    @property
    def aggregate_steps_per_second(self) -> float:
        """Steps per second of all replicas together."""
        return self.replica_steps / self.seconds if self.seconds > 0 else 0.0


def broken(what: str, frames: str, folder: Path, settings: Settings) -> str:
    """The sentence that ends a run which broke: what happened, where the frames are, what helps."""
    remedy = "Shorten the time step (--timestep 0.25), or start from a relaxed geometry"
    if not settings.minimize:
        remedy = "Minimise first (leave out --no-minimize), or shorten the time step"
    return (
        f"{what}; {frames} up to then are kept in {folder}. {remedy}. If that does not help, the "
        "molecule lies outside what the model was trained on: fine-tune it"
    )


def energy_drift(frames: Sequence[Frame], atoms: int) -> float | None:
    """Slope of the total energy, meV per atom and ps; None where two frames are missing."""
    if len(frames) < 2:
        return None
    slope = np.polyfit([f.time for f in frames], [f.total for f in frames], 1)[0]
    return float(1000 * slope / atoms)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Run with so many torch threads; None leaves them alone."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def output_folder(out: Path, overwrite: bool) -> Path:
    """The output folder, if it holds no results or they may be replaced."""
    if out.is_file():
        raise InputError(f"{out} is a file; give a folder for the results")
    old = results(out)
    if old and not overwrite:
        raise InputError(
            f"{out} already holds results ({old[0].name}, ...). Choose another folder with --out, "
            "or replace them with --overwrite"
        )
    return out


def results(folder: Path) -> list[Path]:
    """Files of an earlier run."""
    return [path for pattern in FILES for path in sorted(folder.glob(pattern))]


def start_folder(folder: Path) -> None:
    """Make the folder and remove the results of an earlier run. Only once nothing can go wrong:
    a run that cannot start must not cost the results of the last one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in results(folder):
        path.unlink()
