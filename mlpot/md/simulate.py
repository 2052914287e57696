"""`simulate`: minimise, give velocities, integrate, and leave a folder of results."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from mlpot import __version__
from mlpot.errors import InputError, MLPotError
from mlpot.md.hosts import HOSTS, Host
from mlpot.md.plot import plot_log
from mlpot.md.reporters import FORMATS, Bar, Frame, Log, Trajectory, write_pdb
from mlpot.md.structure import Structure
from mlpot.neighbors import build_graph
from mlpot.units import ACCELERATION, BOLTZMANN

#: K above the thermostat; no molecule stays one at this temperature
BLOWN_UP = 10000.0

#: steps between updates of the progress bar
CHUNK = 25

#: iterations of the minimisation: takes out bad contacts, not more
MINIMIZE = 200

#: up to this many atoms the model runs on one CPU thread by default. A second one gains a
#: fifth on a free machine, and costs a factor of ten where another program wants the core.
ONE_THREAD = 100

#: what a run writes
FILES = (
    "topology.pdb",
    "trajectory.dcd",
    "trajectory.xtc",
    "log.csv",
    "energy.png",
    "final.pdb",
    "run.json",
)


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        host: what integrates: ``openmm`` or ``ase``.
        steps: number of time steps.
        timestep: fs.
        temperature: K, of the starting velocities and of the thermostat.
        friction: 1/ps, of the Langevin thermostat (nvt).
        ensemble: ``nvt`` (Langevin) or ``nve`` (constant energy).
        seed: of velocities and thermostat.
        report_interval: steps between frames; row i of the log is frame i.
        trajectory_format: ``dcd`` or ``xtc``.
        engine: what runs the model: for openmm ``auto``, ``torchforce`` or ``python``; for ase
            ``auto``, ``eager`` or ``torchscript``.
        dtype: ``float32`` or ``float64``; None is the model's own.
        platform: OpenMM platform, or for ase ``cpu`` or ``cuda``; None chooses.
        threads: CPU threads of the model; None is one for up to 100 atoms, else torch's choice.
        minimize: go downhill first, so that bad contacts do not become heat.

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

    def __post_init__(self) -> None:
        choices = {"host": HOSTS, "ensemble": ("nvt", "nve"), "trajectory_format": FORMATS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                got = getattr(self, name)
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {got!r}")
        for name in ("steps", "report_interval", "timestep", "threads"):
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
    #: meV per atom and ps, slope of the total energy; None with a thermostat
    energy_drift: float | None
    interrupted: bool
    files: dict[str, Path] = field(default_factory=dict)


def simulate(
    structure: Structure,
    model: str | Path = "pretrained-visnet",
    *,
    out: str | Path = "runs/md",
    overwrite: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = print,
    console: Console | None = None,
    **options: Any,
) -> Summary:
    """Run molecular dynamics and write its results to a folder.

    Args:
        structure: from `mlpot.md.structure.read_structure`.
        model: a zoo name or a model file.
        out: folder for topology.pdb, trajectory.dcd, log.csv, energy.png, final.pdb, run.json.
        overwrite: replace the results of an earlier run in ``out``.
        progress: show a progress bar, on ``console``.
        report: told, in a line, what is going on.
        options: the fields of `Settings`: steps, timestep, temperature, ...

    Raises:
        InputError: an option that makes no sense, overlapping atoms, results already there.
        UnsupportedSystemError: the model does not cover this system.
        MLPotError: the simulation blew up; the frames up to then are kept.
    """
    settings = Settings(**options)
    threads = settings.threads or (1 if len(structure.numbers) <= ONE_THREAD else None)
    folder = _folder(Path(out), overwrite)  # nothing is removed yet: the model may not load
    with _threads(threads):
        run = _Run(structure, model, settings, folder, report)
        # overlapping atoms are an error before the first step, whatever the engine
        periodic = (structure.box is not None,) * 3
        near = build_graph(structure.numbers, structure.positions, 4.0, structure.box, periodic)
        if len(structure.numbers) > 1 and not near.edge_index.numel():
            raise InputError(
                "no two atoms are within 4 Å of each other; are these coordinates in another unit "
                "(bohr, or Å read as nm)? Convert them to Å"
            )
        return run.go(progress, console)


class _Run:
    """One simulation on its way."""

    def __init__(
        self,
        structure: Structure,
        model: str | Path,
        settings: Settings,
        folder: Path,
        report: Callable[[str], None],
    ):
        self.structure = structure
        self.settings = settings
        self.folder = folder
        self.report = report
        self.host: Host = HOSTS[settings.host](
            structure,
            model,
            timestep=settings.timestep,
            temperature=settings.temperature,
            friction=settings.friction,
            ensemble=settings.ensemble,
            seed=settings.seed,
            engine=settings.engine,
            dtype=settings.dtype,
            platform=settings.platform,
            note=report,
        )
        self.model = str(model)
        self.degrees = max(3, 3 * len(structure.numbers) - 3)  # the centre of mass stays put
        self.frames: list[Frame] = []  # without positions
        self.files = {
            "topology": folder / "topology.pdb",
            "trajectory": folder / f"trajectory.{settings.trajectory_format}",
            "log": folder / "log.csv",
            "plot": folder / "energy.png",
            "final": folder / "final.pdb",
            "run": folder / "run.json",
        }

    def go(self, progress: bool, console: Console | None) -> Summary:
        s = self.settings
        self.report(f"running in {self.host.description}")
        if s.minimize:
            before = self.host.energies()[0]
            self.host.minimize(MINIMIZE)
            gained = before - self.host.energies()[0]
            self.report(f"minimised, which lowered the energy by {gained:.3f} eV")
        # only now: a run that cannot start must not cost the results of an earlier one
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (self.folder / name).unlink(missing_ok=True)
        write_pdb(self.files["topology"], self.structure, self.structure.positions)
        self.host.set_velocities(_velocities(self.structure.masses, s.temperature, s.seed))
        log = Log(self.files["log"])
        trajectory = Trajectory(
            self.files["trajectory"], self.structure, s.timestep, s.report_interval
        )
        bar = Bar(s.steps, s.timestep, progress, console)
        interrupted = False
        try:
            with bar:
                self._loop(bar, log, trajectory)
        except KeyboardInterrupt:  # what there is, is kept and summed up
            interrupted = True
        finally:
            log.close()
            trajectory.close()
            if self.frames:
                plot_log(self.files["log"], self.files["plot"])
        write_pdb(self.files["final"], self.structure, self.host.positions())
        return self._summary(bar.done, bar.seconds, interrupted)

    def _loop(self, bar: Bar, log: Log, trajectory: Trajectory) -> None:
        s = self.settings
        self._record(bar, log, trajectory)
        while bar.done < s.steps:
            to_frame = s.report_interval - bar.done % s.report_interval
            count = min(CHUNK, to_frame, s.steps - bar.done)
            try:
                self.host.step(count)
            except MLPotError as error:
                raise MLPotError(self._stopped(bar.done + count, str(error))) from error
            bar.advance(count)
            if bar.done % s.report_interval == 0:
                self._record(bar, log, trajectory)

    def _record(self, bar: Bar, log: Log, trajectory: Trajectory) -> None:
        s = self.settings
        potential, kinetic = self.host.energies()
        temperature = 2.0 * kinetic / (self.degrees * BOLTZMANN)
        positions = self.host.positions()
        if not (math.isfinite(potential + kinetic) and np.isfinite(positions).all()):
            raise MLPotError(self._stopped(bar.done, "the energy or a position became NaN"))
        if temperature > s.temperature + BLOWN_UP:
            raise MLPotError(
                self._stopped(bar.done, f"the temperature reached {temperature:.0f} K")
            )
        time = bar.done * s.timestep / 1000
        frame = Frame(bar.done, time, positions, potential, kinetic, temperature)
        trajectory.write(frame)
        log.write(frame, bar.rate)
        bar.show(frame)
        self.frames.append(frame._replace(positions=np.empty((0, 3))))

    def _stopped(self, step: int, cause: str) -> str:
        kept = f" ({len(self.frames)} frame(s) up to then are kept in {self.folder})"
        remedy = "Shorten the time step (--timestep 0.25), or start from a relaxed geometry"
        if not self.settings.minimize:
            remedy = "Minimise first (leave out --no-minimize), or shorten the time step"
        return (
            f"the simulation broke by step {step}: {cause.rstrip('.')}{kept}. {remedy}. If that "
            "does not help, the molecule lies outside what the model was trained on: fine-tune it"
        )

    def _summary(self, done: int, seconds: float, interrupted: bool) -> Summary:
        s = self.settings
        rate = done / seconds if seconds > 0 else 0.0
        half = [f.temperature for f in self.frames[len(self.frames) // 2 :]]
        summary = Summary(
            steps=done,
            time=done * s.timestep / 1000,
            seconds=seconds,
            steps_per_second=rate,
            ns_per_day=rate * s.timestep * 86400 / 1e6,
            mean_temperature=float(np.mean(half)) if half else math.nan,
            energy_drift=self._drift() if s.ensemble == "nve" else None,
            interrupted=interrupted,
            files=self.files,
        )
        told = {
            "mlpot": __version__,
            "model": self.model,
            "structure": self.structure.name,
            "host": self.host.description,
            "settings": asdict(s),
            "summary": asdict(summary) | {"files": {k: p.name for k, p in self.files.items()}},
        }
        self.files["run"].write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        return summary

    def _drift(self) -> float:
        """Slope of the total energy, meV per atom and ps."""
        if len(self.frames) < 2:
            return math.nan
        slope = np.polyfit([f.time for f in self.frames], [f.total for f in self.frames], 1)[0]
        return float(1000 * slope / len(self.structure.numbers))


def _velocities(masses: NDArray[np.float64], temperature: float, seed: int) -> NDArray[np.float64]:
    """Maxwell-Boltzmann velocities [N, 3] Å/fs with the centre of mass at rest."""
    rng = np.random.default_rng(seed)
    spread = np.sqrt(BOLTZMANN * temperature / masses * ACCELERATION)
    velocities = rng.standard_normal((len(masses), 3)) * spread[:, None]
    return velocities - (masses @ velocities) / masses.sum()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Run with so many torch threads; None leaves them alone."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _folder(out: Path, overwrite: bool) -> Path:
    """The output folder, if it holds no results or they may be replaced."""
    if out.is_file():
        raise InputError(f"{out} is a file; give a folder for the results")
    old = [out / name for name in FILES if (out / name).exists()]
    if old and not overwrite:
        raise InputError(
            f"{out} already holds results ({old[0].name}, ...). Choose another folder with --out, "
            "or replace them with --overwrite"
        )
    return out
