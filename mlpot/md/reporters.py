"""What a run leaves behind: a trajectory, a CSV log, a progress bar."""

import csv
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from openmm import Vec3, app, unit
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mlpot.md.structure import Structure
from mlpot.units import ANGSTROM_TO_NM

FORMATS = ("dcd", "xtc")


class Frame(NamedTuple):
    """The state of a system at one step, as both hosts give it."""

    step: int
    time: float  # ps
    positions: NDArray[np.float64]  # [N, 3] Å, not wrapped into the box
    potential: float  # eV, total
    kinetic: float  # eV
    temperature: float  # K

    @property
    def total(self) -> float:
        """eV"""
        return self.potential + self.kinetic


class Log:
    """One CSV row a frame; readable while the run goes on.

    Args:
        replicas: rows also tell of which replica they are, in a column after the time.
    """

    COLUMNS = (
        "step",
        "time_ps",
        "potential_eV",
        "kinetic_eV",
        "total_eV",
        "temperature_K",
        "steps_per_second",
    )

    def __init__(self, path: Path, replicas: bool = False):
        self._file = path.open("w", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        extra = ["replica"] if replicas else []
        self._csv.writerow([*self.COLUMNS[:2], *extra, *self.COLUMNS[2:]])

    def write(self, frame: Frame, rate: float, replica: int | None = None) -> None:
        who = [] if replica is None else [replica]
        energies = (f"{e:.6f}" for e in (frame.potential, frame.kinetic, frame.total))
        heat = f"{frame.temperature:.2f}"
        self._csv.writerow([frame.step, f"{frame.time:.6g}", *who, *energies, heat, f"{rate:.1f}"])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Trajectory:
    """Frames in DCD (float32) or XTC (0.01 Å, smaller), with the times in the header.

    Args:
        timestep: fs.
        interval: steps between frames.
    """

    def __init__(self, path: Path, structure: Structure, timestep: float, interval: int):
        self._stream: IO[bytes] | None = None
        self._box = structure.topology.getPeriodicBoxVectors()
        dt = timestep * unit.femtosecond
        self._file: Any
        if path.suffix == ".xtc":
            self._file = app.XTCFile(str(path), structure.topology, dt, 0, interval)
        else:
            self._stream = path.open("wb")
            self._file = app.DCDFile(self._stream, structure.topology, dt, 0, interval)

    def write(self, frame: Frame) -> None:
        positions = frame.positions * ANGSTROM_TO_NM
        self._file.writeModel(positions * unit.nanometer, periodicBoxVectors=self._box)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def write_pdb(path: Path, structure: Structure, *models: NDArray[np.float64]) -> None:
    """Write positions [N, 3] Å under the names of the structure; several as MODELs of one file."""
    topology = structure.topology
    with path.open("w", encoding="utf-8") as file:
        app.PDBFile.writeHeader(topology, file)
        for number, positions in enumerate(models, 1):
            rows = [Vec3(*row) for row in (positions * ANGSTROM_TO_NM).tolist()] * unit.nanometer
            index = None if len(models) == 1 else number
            app.PDBFile.writeModel(topology, rows, file, modelIndex=index, keepIds=True)
        app.PDBFile.writeFooter(topology, file)


class Bar:
    """Progress bar: step, ps, temperature, steps per second, time left.

    Use as a context manager; ``visible=False`` only measures the rate.
    """

    def __init__(self, steps: int, timestep: float, visible: bool, console: Console | None = None):
        self._timestep = timestep
        self._progress = Progress(
            TextColumn("[bold]MD"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TextColumn("{task.fields[ps]:.3f} ps"),
            TextColumn("{task.fields[kelvin]:.0f} K"),
            TextColumn("{task.fields[rate]:.1f} steps/s"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not visible,
        )
        self._task = self._progress.add_task("MD", total=steps, ps=0.0, kelvin=0.0, rate=0.0)
        self._start = time.perf_counter()
        self._end: float | None = None
        self.done = 0

    def __enter__(self) -> "Bar":
        self._progress.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end = time.perf_counter()
        self._progress.stop()

    @property
    def seconds(self) -> float:
        """Wall time inside the context."""
        return (self._end or time.perf_counter()) - self._start

    @property
    def rate(self) -> float:
        """Steps per second since the start; 0 before the first step."""
        return self.done / self.seconds if self.done else 0.0

    def advance(self, steps: int) -> None:
        self.done += steps
        ps = self.done * self._timestep / 1000
        self._progress.update(self._task, completed=self.done, ps=ps, rate=self.rate)

    def show(self, frame: Frame) -> None:
        self._progress.update(self._task, kelvin=frame.temperature)
