"""A run of several replicas of one molecule: the same folder as for one, a trajectory each."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from mlpot import __version__
from mlpot.deploy.load import load
from mlpot.errors import MLPotError, UnsupportedSystemError
from mlpot.md.bonds import tell_opened
from mlpot.md.guard import ExtrapolationError, ReplicaGuard, make_guard
from mlpot.md.plot_replicas import plot_replicas
from mlpot.md.replicas import Replicas
from mlpot.md.reporters import Bar, Frame, Log, Trajectory, write_pdb
from mlpot.md.settings import (
    CHUNK,
    MINIMIZE,
    Settings,
    Summary,
    broken,
    energy_drift,
    start_folder,
)
from mlpot.md.structure import Structure


class ReplicaRun:
    """Several copies of one molecule on their way, integrated by `Replicas`."""

    def __init__(
        self,
        structure: Structure,
        model: str | Path,
        settings: Settings,
        folder: Path,
        report: Callable[[str], None],
    ):
        if structure.box is not None:
            raise UnsupportedSystemError(
                f"{structure.name} is periodic, and several replicas run without a box only. "
                "Leave out --replicas, or ignore the box with --no-pbc"
            )
        self.structure, self.settings, self.folder = structure, settings, folder
        self.report = report
        self.name = str(model)
        self.model = load(
            model, settings.engine, settings.dtype, (settings.platform or "auto").lower()
        )
        self.model.prepare(len(structure.numbers), settings.replicas)
        self._one = self._systems(1, structure.positions)  # refuses what is not covered
        guard = make_guard(
            settings.guard,
            model,
            folder / "extrapolated.xyz",
            report,
            settings.guard_model,
            settings.guard_unit,
        )
        self.guard = None if guard is None else ReplicaGuard(guard)
        scheme = "Langevin middle" if settings.ensemble == "nvt" else "velocity Verlet"
        self.description = (
            f"mlpot's batched integrator ({scheme}), {self.model.engine} on {self.model.device}"
        )
        self.replicas: Replicas = self._one
        self.frames: list[list[Frame]] = [[] for _ in range(settings.replicas)]  # no positions
        width = max(2, len(str(settings.replicas - 1)))
        self.trajectories = [
            folder / f"replica_{r:0{width}d}.{settings.trajectory_format}"
            for r in range(settings.replicas)
        ]
        self.files = {
            "topology": folder / "topology.pdb",
            "log": folder / "log.csv",
            "plot": folder / "energy.png",
            "final": folder / "final.pdb",
            "run": folder / "run.json",
        }

    def go(self, progress: bool, console: Console | None) -> Summary:
        s = self.settings
        self.report(
            f"running {s.replicas} replicas in {self.description}, "
            f"{torch.get_num_threads()} thread(s)" + "; --host does not apply" * (s.host == "ase")
        )
        if s.minimize:
            before = self._one.potential[0]
            self._one.minimize(MINIMIZE)
            gained = before - self._one.potential[0]
            self.report(f"minimised, which lowered the energy by {gained:.3f} eV")
            numbers, given = self.structure.numbers, self.structure.positions
            tell_opened(numbers, given, self._one.positions[0], self.report)
        start_folder(self.folder)
        write_pdb(self.files["topology"], self.structure, self.structure.positions)
        self.replicas = self._systems(s.replicas, self._one.positions[0])
        self.replicas.observers += [] if self.guard is None else [self.guard]
        log = Log(self.files["log"], replicas=True)
        trajectories = [
            Trajectory(path, self.structure, s.timestep, s.report_interval)
            for path in self.trajectories
        ]
        bar = Bar(s.steps, s.timestep, progress, console)
        interrupted, outside = False, None
        try:
            with bar:
                self._loop(bar, log, trajectories)
        except KeyboardInterrupt:  # what there is, is kept and summed up
            interrupted = True
        except ExtrapolationError as error:  # the same
            outside = error
        finally:
            log.close()
            for trajectory in trajectories:
                trajectory.close()
            if any(self.frames):
                plot_replicas(self.files["log"], self.files["plot"])
        write_pdb(self.files["final"], self.structure, *self.replicas.positions)
        summary = self._summary(bar.done, bar.seconds, interrupted)
        if outside is not None:
            raise outside
        return summary

    def _systems(self, count: int, positions: np.ndarray) -> Replicas:
        s = self.settings
        return Replicas(
            self.model,
            [self.structure.numbers] * count,
            [positions] * count,
            masses=[self.structure.masses] * count,
            temperatures=s.temperature,
            timestep=s.timestep,
            friction=s.friction if s.ensemble == "nvt" else None,
            seeds=s.seed,
        )

    def _loop(self, bar: Bar, log: Log, trajectories: list[Trajectory]) -> None:
        s = self.settings
        self._record(bar, log, trajectories)
        if self.guard is not None:
            if s.minimize:
                watch = self.guard.guard.watch(self.structure.numbers)
                watch.minimised(self.structure.positions, self._one.positions[0])
            self.guard(self.replicas)
            self._tell(set())
        while bar.done < s.steps:
            to_frame = s.report_interval - bar.done % s.report_interval
            count = min(CHUNK, to_frame, s.steps - bar.done)
            known = set(self.replicas.lost)
            self.replicas.step(count)
            self._tell(known)
            bar.advance(count)
            if bar.done % s.report_interval == 0:
                self._record(bar, log, trajectories)

    def _tell(self, known: set[int]) -> None:
        """Of replicas that have ended since; raises if none is left."""
        for r in sorted(self.replicas.lost.keys() - known):
            self.report(self._ended(r))
        if not self.replicas.alive.any():
            raise self._stopped()

    def _record(self, bar: Bar, log: Log, trajectories: list[Trajectory]) -> None:
        replicas = self.replicas
        time = bar.done * self.settings.timestep / 1000
        positions, heat = replicas.positions, replicas.temperature
        potential, kinetic = replicas.potential, replicas.kinetic
        living = replicas.alive.nonzero()[0]
        if not len(living):
            raise self._stopped()
        for r in living:
            energies = float(potential[r]), float(kinetic[r])
            frame = Frame(bar.done, time, positions[r], *energies, float(heat[r]))
            trajectories[r].write(frame)
            log.write(frame, bar.rate, int(r))
            self.frames[r].append(frame._replace(positions=np.empty((0, 3))))
        bar.show(frame._replace(temperature=float(heat[living].mean())))

    @property
    def _outside(self) -> dict[int, str]:
        """Replicas that the guard took out, and why."""
        return {} if self.guard is None else self.guard.stopped

    def _ended(self, replica: int) -> str:
        """How one replica came to its end; what the guard saw before a break is saved."""
        if replica in self._outside:
            return self._outside[replica]
        step = self.replicas.lost[replica] + 1
        told = f"replica {replica} broke at step {step}; its last sound geometry is kept"
        saved = 0 if self.guard is None else self.guard.broke(replica)
        return f"{told}, and {saved} frame(s) before it in extrapolated.xyz" if saved else told

    def _stopped(self) -> MLPotError:
        last = max(self.replicas.lost.values()) + 1
        if self._outside:
            return ExtrapolationError(
                f"no replica is left: {len(self._outside)} of {len(self.replicas)} were stopped by "
                f"the guard; frames are in {self.folder}. Label those outside and fine-tune, or "
                "let it only warn (--guard warn)"
            )
        what = f"all {len(self.replicas)} replicas broke, the last at step {last}"
        return MLPotError(broken(what, "frames", self.folder, self.settings))

    def _summary(self, done: int, seconds: float, interrupted: bool) -> Summary:
        s, lost = self.settings, self.replicas.lost
        rate = done / seconds if seconds > 0 else 0.0
        details = [self._of_one(r, done) for r in range(s.replicas)]
        sound = [d for d in details if not (d["broke"] or d["stopped_by_guard"])]
        halves = [d["mean_temperature"] for d in sound if d["mean_temperature"] is not None]
        drifts = [d["energy_drift"] for d in sound if d["energy_drift"] is not None]
        summary = Summary(
            steps=done,
            time=done * s.timestep / 1000,
            seconds=seconds,
            steps_per_second=rate,
            ns_per_day=rate * s.timestep * 86400 / 1e6,
            mean_temperature=float(np.mean(halves)) if halves else math.nan,
            energy_drift=float(np.mean(drifts)) if drifts else None,
            interrupted=interrupted,
            files=self.files | {p.stem: p for p in self.trajectories},
            replicas=s.replicas,
            replica_steps=sum(d["steps"] for d in details),
            lost={r: steps for r, steps in lost.items() if r not in self._outside},
            guard=None if self.guard is None else self.guard.guard.told(),
        )
        told = {
            "mlpot": __version__,
            "model": self.name,
            "structure": self.structure.name,
            "host": self.description,
            "settings": asdict(s),
            "summary": asdict(summary)
            | {
                "aggregate_steps_per_second": summary.aggregate_steps_per_second,
                "files": {k: p.name for k, p in summary.files.items()},
            },
            "replicas": details,
        }
        self.files["run"].write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        return summary

    def _of_one(self, replica: int, done: int) -> dict[str, Any]:
        """What came of one: mean temperature of its second half, drift in meV per atom and ps."""
        frames = self.frames[replica]
        half = [f.temperature for f in frames[len(frames) // 2 :]]
        drift = None
        if self.settings.ensemble == "nve":
            drift = energy_drift(frames, len(self.structure.numbers))
        return {
            "replica": replica,
            "seed": self.settings.seed + replica,
            "steps": self.replicas.lost.get(replica, done),
            "broke": replica in self.replicas.lost and replica not in self._outside,
            "stopped_by_guard": replica in self._outside,
            "mean_temperature": float(np.mean(half)) if half else None,
            "energy_drift": drift,
        }
