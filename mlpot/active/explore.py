"""Simulate with a model, and keep the frames that are worth labelling."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from rich.console import Console

from mlpot.active.records import RoundFiles, write_frames, write_json
from mlpot.active.sanity import Sanity
from mlpot.active.settings import INTERVAL, LOOK, RefineSettings
from mlpot.deploy.grader import has_statistics
from mlpot.deploy.load import compile_ahead, load
from mlpot.md.bonds import opened
from mlpot.md.guard import Flag, Guard, ReplicaGuard
from mlpot.md.replicas import Replicas
from mlpot.md.reporters import Bar, Frame
from mlpot.md.settings import LONG, MINIMIZE, torch_threads
from mlpot.md.structure import Structure

#: why a frame is a candidate: above the line of the guard, the last sound one of a replica that
#: broke, or neither
FLAGGED, LAST, THERMAL = "flagged", "last sound", "thermal"

#: ps between candidates that nothing flagged
THERMAL_SPACING = 0.05


class Scout:
    """Observer of the replicas: reads what the guard found, collects frames, and takes out what is
    debris or has been outside for long enough.

    It comes after the guard among the observers and is called as often, at looks between checks
    too: a hydrogen leaves in less than 10 fs, so at the next check there is only debris.

    Args:
        start: [N, 3] Å, where the replicas begin; its molecules have to stay whole.
        look: the guard; None where the model knows no training set.
        thermal: replicas whose frames are candidates as long as nothing flags them.

    Attributes:
        candidates, rejected: frames, in the order of time.
        ended: replica -> why it was taken out.
    """

    def __init__(
        self,
        structure: Structure,
        start: NDArray[np.float64],
        settings: RefineSettings,
        temperatures: NDArray[np.float64],
        look: ReplicaGuard | None,
        thermal: frozenset[int],
    ):
        self.interval = LOOK if look is None else look.interval
        self.candidates: list[Atoms] = []
        self.rejected: list[Atoms] = []
        self.ended: dict[int, str] = {}
        self._look = look
        self._structure, self._settings = structure, settings
        self._temperatures, self._thermal = temperatures, thermal
        self._sanity = Sanity(structure.numbers, start)
        self._kept: dict[int, int] = {}  # replica -> step of its latest candidate
        self._outside: set[int] = set()  # replicas with a flagged candidate
        self._sound: dict[int, Atoms] = {}  # replica -> its latest frame that is no debris

    def __call__(self, replicas: Replicas) -> None:
        """Called by `Replicas` every `interval` steps."""
        positions, step = replicas.positions, replicas.steps
        flags = self.first_flags()
        gone = []
        for r in replicas.alive.nonzero()[0].tolist():
            frame = self._frame(r, step, positions[r])
            if problem := self._sanity.problem(positions[r]):
                frame.info["why"] = problem
                self.rejected.append(frame)
                self.ended[r] = problem
                gone.append(r)
                continue
            self._sound[r] = frame
            if self._checked(r, step):
                self._consider(r, step, frame, flagged=r in flags)
            if r in flags and step >= flags[r].step + self._settings.steps_in(
                self._settings.linger
            ):
                self.ended[r] = "flagged"
                gone.append(r)
        if gone:  # removing none would make a new pair list all the same
            replicas.remove(gone)

    def first_flags(self) -> dict[int, Flag]:
        """Replica -> the first flag of it."""
        found: dict[int, Flag] = {}
        for flag in [] if self._look is None else self._look.guard.flags:
            assert flag.system is not None
            found.setdefault(flag.system, flag)
        return found

    def finish(self, replicas: Replicas) -> None:
        """Add the last sound frame of every replica that broke: what comes next is the lesson."""
        for r in sorted(replicas.lost):
            frame = self._sound.get(r)
            if self.ended.get(r) == "flagged" or frame is None:
                continue
            if self._kept.get(r, -1) < frame.info["step"]:
                self._add(r, frame, LAST)

    def _checked(self, r: int, step: int) -> bool:
        """Was this replica graded just now? Without a guard, whether it would have been."""
        if self._look is None:
            return step % INTERVAL == 0
        return self._look.graded.get(r) == step

    def _consider(self, r: int, step: int, frame: Atoms, flagged: bool) -> None:
        since = step - self._kept.get(r, -(10**9))
        steps_in = self._settings.steps_in
        if flagged:
            assert self._look is not None
            outside = frame.info["extrapolation_grade"] > self._look.guard.line
            # the first frame outside counts, however shortly before a thermal one was kept
            fresh = r not in self._outside
            if outside and (fresh or since >= steps_in(self._settings.spacing)):
                self._outside.add(r)
                self._add(r, frame, FLAGGED)
        elif r in self._thermal and since >= steps_in(THERMAL_SPACING):
            self._add(r, frame, THERMAL)

    def _add(self, r: int, frame: Atoms, why: str) -> None:
        frame.info["why"] = why
        self.candidates.append(frame)
        self._kept[r] = frame.info["step"]

    def _frame(self, r: int, step: int, positions: NDArray[np.float64]) -> Atoms:
        told: dict[str, Any] = {
            "group": self._structure.formula,
            "replica": r,
            "temperature": float(self._temperatures[r]),
            "step": step,
            "time_ps": step * self._settings.timestep / 1000,
        }
        if self._look is not None and self._checked(r, step):
            grades = np.nan_to_num(self._look.latest[r], posinf=1e9)
            told |= {"extrapolation_grade": float(grades.max()), "atom": int(grades.argmax())}
        return Atoms(self._structure.numbers, positions - positions.mean(axis=0), info=told)


class Run(NamedTuple):
    """How to simulate in one round."""

    number: int  # of the round
    model: Path
    guarded: bool
    temperatures: NDArray[np.float64]  # [R] K
    seed: int  # of the first replica


def plan(settings: RefineSettings, number: int, model: Path) -> Run:
    """A model that does not know what it was trained on can flag nothing, so at high temperature
    there would be nothing to learn which frames matter: it runs at the lowest only."""
    guarded = has_statistics(model)
    ladder = settings.temperatures if guarded else settings.temperatures[:1]
    most = len(settings.temperatures) * settings.replicas
    temperatures = np.repeat(ladder, settings.replicas)
    return Run(number, model, guarded, temperatures, settings.seed + number * most)


def explore(
    structure: Structure,
    run: Run,
    settings: RefineSettings,
    files: RoundFiles,
    progress: bool = False,
    console: Console | None = None,
) -> None:
    """Simulate, and write candidates.xyz, rejected.xyz and, last, run.json.

    Raises:
        InputError, UnsupportedSystemError: the model cannot run this molecule.
    """
    often: Any = {"interval": INTERVAL, "look": LOOK, "report": lambda line: None}
    guard = Guard(run.model, "warn", **often) if run.guarded else None
    low = run.temperatures == min(settings.temperatures)
    thermal = frozenset(low.nonzero()[0].tolist() if run.number == 0 else ())
    look = None if guard is None else ReplicaGuard(guard)
    with torch_threads(settings.threads):
        model = load(run.model, _engine(run, settings, structure))
        start = _relaxed(structure, Replicas(model, [structure.numbers], [structure.positions]))
        scout = Scout(structure, start, settings, run.temperatures, look, thermal)
        copies = len(run.temperatures)
        replicas = Replicas(
            model,
            [structure.numbers] * copies,
            [start] * copies,
            masses=[structure.masses] * copies,
            temperatures=run.temperatures,
            timestep=settings.timestep,
            friction=settings.friction,
            seeds=run.seed,
        )
        replicas.observers += [scout] if look is None else [look, scout]
        with Bar(settings.steps, settings.timestep, progress, console) as bar:
            while bar.done < settings.steps and replicas.alive.any():
                count = min(INTERVAL, settings.steps - bar.done)
                replicas.step(count)
                bar.advance(count)
                if progress and replicas.alive.any():
                    heat = float(replicas.temperature[replicas.alive].mean())
                    bar.show(Frame(bar.done, 0.0, np.empty((0, 3)), 0.0, 0.0, heat))
    scout.finish(replicas)
    write_frames(files.candidates, scout.candidates)
    write_frames(files.rejected, scout.rejected)
    write_json(files.explored, _told(run, settings, scout, replicas))


def _engine(run: Run, settings: RefineSettings, structure: Structure) -> str:
    """As `mlpot md`: a long simulation is worth the minute of compiling."""
    long = settings.steps * len(run.temperatures) >= LONG
    if settings.engine == "auto" and long:
        size, copies = len(structure.numbers), len(run.temperatures)
        compile_ahead(run.model, None, size, lambda line: None, copies)
    return settings.engine


def _relaxed(structure: Structure, one: Replicas) -> NDArray[np.float64]:
    """Without bad contacts; or as given, where the model's minimum is no molecule, or another: the
    bond that it does not know is then in the frame that is flagged."""
    one.minimize(MINIMIZE)
    numbers, given, relaxed = structure.numbers, structure.positions, one.positions[0]
    broken = Sanity(numbers, relaxed).problem(relaxed) or opened(numbers, given, relaxed)
    return given if broken else relaxed


def _told(run: Run, settings: RefineSettings, scout: Scout, replicas: Replicas) -> dict[str, Any]:
    flags = scout.first_flags()
    rows = []
    for r, temperature in enumerate(run.temperatures.tolist()):
        steps = replicas.lost.get(r, replicas.steps)
        end = scout.ended.get(r, "broke" if r in replicas.lost else "")
        flag = flags.get(r)
        stable = steps if flag is None else min(steps, flag.step)
        rows.append(
            {
                "replica": r,
                "temperature": temperature,
                "seed": run.seed + r,
                "steps": steps,
                "end": end,
                "flag_ps": None if flag is None else flag.time,
                "flag_atom": None if flag is None else f"{flag.symbol}{flag.atom}",
                "stable_ps": stable * settings.timestep / 1000,
            }
        )
    reasons = [a.info["why"] for a in scout.candidates]
    return {
        "round": run.number,
        "guarded": run.guarded,
        "timestep": settings.timestep,
        "steps": settings.steps,
        "replicas": rows,
        "candidates": {why: reasons.count(why) for why in (FLAGGED, LAST, THERMAL)},
        "rejected": [
            {"replica": a.info["replica"], "ps": a.info["time_ps"], "why": a.info["why"]}
            for a in scout.rejected
        ],
    }
