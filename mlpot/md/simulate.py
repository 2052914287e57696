"""`simulate`: minimise, give velocities, integrate, and leave a folder of results."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from mlpot import __version__
from mlpot.deploy.load import compile_ahead
from mlpot.errors import InputError, MLPotError
from mlpot.md.bonds import tell_opened
from mlpot.md.guard import ExtrapolationError, make_guard
from mlpot.md.hosts import HOSTS, Host
from mlpot.md.plot import plot_log
from mlpot.md.replica_run import ReplicaRun
from mlpot.md.replicas import BLOWN_UP
from mlpot.md.reporters import Bar, Frame, Log, Trajectory, write_pdb
from mlpot.md.settings import (
    CHUNK,
    LONG,
    MINIMIZE,
    ONE_THREAD,
    Settings,
    Summary,
    broken,
    energy_drift,
    output_folder,
    start_folder,
    torch_threads,
)
from mlpot.md.structure import Structure
from mlpot.md.velocities import maxwell_boltzmann
from mlpot.neighbors import build_graph
from mlpot.units import BOLTZMANN


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
        out: folder for topology.pdb, trajectory.dcd, log.csv, energy.png, final.pdb, run.json;
            with several replicas one replica_00.dcd, ... each.
        overwrite: replace the results of an earlier run in ``out``.
        progress: show a progress bar, on ``console``.
        report: told, in a line, what is going on.
        options: the fields of `Settings`: steps, timestep, temperature, replicas, ...

    Raises:
        InputError: an option that makes no sense, overlapping atoms, results already there.
        UnsupportedSystemError: the model does not cover this system.
        MLPotError: the simulation blew up; the frames up to then are kept.
        ExtrapolationError: it left what the model was trained on, and ``guard`` is ``stop``; all
            results up to then are kept.
    """
    settings = Settings(**options)
    atoms = settings.replicas * len(structure.numbers)
    threads = settings.threads or (1 if atoms <= ONE_THREAD else None)
    folder = output_folder(Path(out), overwrite)  # nothing is removed yet: the model may not load
    with torch_threads(threads):
        if _long(settings):
            _check_distances(structure)
            size = len(structure.numbers)
            if compile_ahead(model, settings.dtype, size, report, settings.replicas):
                settings = replace(settings, engine="compiled")
        kind = ReplicaRun if settings.replicas > 1 else _Run
        run = kind(structure, model, settings, folder, report)
        _check_distances(structure)
        return run.go(progress, console)


def _long(settings: Settings) -> bool:
    """Does compiling save this run more time than it takes?"""
    long = settings.steps * settings.replicas >= LONG
    on_cpu = not torch.cuda.is_available() and settings.platform in (None, "cpu", "CPU")
    return settings.engine == "auto" and long and on_cpu


def _check_distances(structure: Structure) -> None:
    """Overlapping atoms are an error before the first step, whatever the engine."""
    periodic = (structure.box is not None,) * 3
    near = build_graph(structure.numbers, structure.positions, 4.0, structure.box, periodic)
    if len(structure.numbers) > 1 and not near.edge_index.numel():
        raise InputError(
            "no two atoms are within 4 Å of each other; are these coordinates in another unit "
            "(bohr, or Å read as nm)? Convert them to Å"
        )


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
        self.guard = make_guard(
            settings.guard,
            model,
            folder / "extrapolated.xyz",
            report,
            settings.guard_model,
            settings.guard_unit,
        )
        periodic = structure.box is not None
        self.watch = None if self.guard is None else self.guard.watch(structure.numbers, periodic)
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
            numbers, given = self.structure.numbers, self.structure.positions
            tell_opened(numbers, given, self.host.positions(), self.report)
        start_folder(self.folder)
        write_pdb(self.files["topology"], self.structure, self.structure.positions)
        self.host.set_velocities(maxwell_boltzmann(self.structure.masses, s.temperature, s.seed))
        log = Log(self.files["log"])
        trajectory = Trajectory(
            self.files["trajectory"], self.structure, s.timestep, s.report_interval
        )
        bar = Bar(s.steps, s.timestep, progress, console)
        interrupted, outside = False, None
        try:
            with bar:
                self._loop(bar, log, trajectory)
        except KeyboardInterrupt:  # what there is, is kept and summed up
            interrupted = True
        except ExtrapolationError as error:  # the same
            outside = error
        finally:
            log.close()
            trajectory.close()
            if self.frames:
                plot_log(self.files["log"], self.files["plot"])
        write_pdb(self.files["final"], self.structure, self.host.positions())
        summary = self._summary(bar.done, bar.seconds, interrupted)
        if outside is not None:
            raise outside
        return summary

    def _loop(self, bar: Bar, log: Log, trajectory: Trajectory) -> None:
        s = self.settings
        self._record(bar, log, trajectory)
        if s.minimize and self.watch is not None:
            given = self.structure.positions
            self.watch.minimised(given, self.host.positions(), self.structure.box)
        self._look(0)
        while bar.done < s.steps:
            to_frame = s.report_interval - bar.done % s.report_interval
            to_look = CHUNK
            if self.guard is not None:
                to_look = self.guard.every - bar.done % self.guard.every
            count = min(CHUNK, to_frame, to_look, s.steps - bar.done)
            try:
                self.host.step(count)
            except MLPotError as error:
                raise self._broke(bar.done + count, str(error)) from error
            bar.advance(count)
            if bar.done % s.report_interval == 0:
                self._record(bar, log, trajectory)
            self._look(bar.done)

    def _look(self, step: int) -> None:
        if self.watch is not None and step % self.watch.guard.every == 0:
            time = step * self.settings.timestep / 1000
            self.watch.look(step, time, self.host.positions(), self.structure.box)

    def _record(self, bar: Bar, log: Log, trajectory: Trajectory) -> None:
        s = self.settings
        potential, kinetic = self.host.energies()
        temperature = 2.0 * kinetic / (self.degrees * BOLTZMANN)
        positions = self.host.positions()
        if not (math.isfinite(potential + kinetic) and np.isfinite(positions).all()):
            raise self._broke(bar.done, "the energy or a position became NaN")
        if temperature > s.temperature + BLOWN_UP:
            raise self._broke(bar.done, f"the temperature reached {temperature:.0f} K")
        time = bar.done * s.timestep / 1000
        frame = Frame(bar.done, time, positions, potential, kinetic, temperature)
        trajectory.write(frame)
        log.write(frame, bar.rate)
        bar.show(frame)
        self.frames.append(frame._replace(positions=np.empty((0, 3))))

    def _broke(self, step: int, cause: str) -> MLPotError:
        """The error that ends the run; what the guard saw last is saved, if frames are to be."""
        what = f"the simulation broke by step {step}: {cause.rstrip('.')}"
        saved = 0 if self.watch is None else self.watch.broke()
        if saved:
            what += (
                f"; the last {saved} frame(s) before that are in extrapolated.xyz, for labelling"
            )
        frames = f"{len(self.frames)} frame(s)"
        return MLPotError(broken(what, frames, self.folder, self.settings))

    def _summary(self, done: int, seconds: float, interrupted: bool) -> Summary:
        s = self.settings
        rate = done / seconds if seconds > 0 else 0.0
        half = [f.temperature for f in self.frames[len(self.frames) // 2 :]]
        nve = s.ensemble == "nve"
        drift = energy_drift(self.frames, len(self.structure.numbers)) if nve else None
        summary = Summary(
            steps=done,
            time=done * s.timestep / 1000,
            seconds=seconds,
            steps_per_second=rate,
            ns_per_day=rate * s.timestep * 86400 / 1e6,
            mean_temperature=float(np.mean(half)) if half else math.nan,
            energy_drift=drift,
            interrupted=interrupted,
            files=self.files,
            replica_steps=done,
            guard=None if self.guard is None else self.guard.told(),
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
