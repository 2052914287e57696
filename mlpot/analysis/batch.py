"""Runs of one scenario, integrated side by side by `Replicas`; goes on from a state on disk."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpot.analysis.criteria import (
    CALCULATOR,
    INTEGRATOR,
    PIECES,
    START,
    bond_lengths,
    find_bonds,
)
from mlpot.analysis.records import Folder, Json, write_trajectory
from mlpot.analysis.scenarios import EQUILIBRATION, FRICTION, Planned, Scenario
from mlpot.analysis.starts import apart, distort, relax
from mlpot.analysis.subjects import CalculatorModel, Subject
from mlpot.analysis.watched import watched
from mlpot.errors import UnsupportedSystemError
from mlpot.md.replicas import Replicas

#: seconds between states on disk: what a kill can cost
CHECKPOINT = 60.0

#: Å longer than at the start: whatever rule a run is judged by, such a bond has broken it. What is
#: in pieces is not integrated any further. So much, as hydrogens may change sides in a good model
TORN = 5.0

_SERIES = ("temperatures", "thermostat", "potential", "kinetic")


@dataclass(frozen=True, eq=False)
class Batch:
    """Runs of one scenario that are integrated together, and where their files go.

    Attributes:
        torn: Å; see `TORN`.
    """

    subject: Subject
    runs: tuple[Planned, ...]
    folder: str
    torn: float = TORN

    @property
    def key(self) -> str:
        content = " ".join(run.key for run in self.runs)
        return f"runs-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    @property
    def scenario(self) -> Scenario:
        return self.runs[0].scenario


def batches(runs: Sequence[Planned], subject: Subject, folder: str | Path) -> Iterator[Batch]:
    """Runs of one scenario each, up to a number of atoms; always cut the same way."""
    chosen: list[Planned] = []
    for run in runs:
        atoms = sum(len(r.molecule.numbers) for r in [*chosen, run])
        if chosen and (run.scenario != chosen[0].scenario or atoms > subject.batch_atoms):
            yield Batch(subject, tuple(chosen), str(folder))
            chosen = []
        chosen.append(run)
    if chosen:
        yield Batch(subject, tuple(chosen), str(folder))


def runs_of_state(path: Path) -> set[str]:
    """Keys of the runs whose state a file of `Folder.partial` holds; of an older file none."""
    with np.load(path) as file:
        return set(file["runs"].tolist()) if "runs" in file else set()


def run_batch(batch: Batch) -> Json:
    """Simulate, write the trajectories, and return the records."""
    return {"records": _Going(batch).go()}


class _Going:
    """A batch on its way. One frame every stride; of lost systems none.

    Of a calculator a batch has one run (`Subject.batch_atoms`), so what the calculator raises is
    of that run.
    """

    def __init__(self, batch: Batch):
        self.batch, self.scenario = batch, batch.scenario
        self.folder = Folder(batch.folder)
        self.model = batch.subject.open()
        self.watched = watched(batch.subject)
        self.frames: list[list[NDArray[np.float32]]] = [[] for _ in batch.runs]
        self.series: dict[str, list[list[float]]] = {s: [[] for _ in batch.runs] for s in _SERIES}
        molecules = [run.molecule for run in batch.runs]
        self.bonds = [find_bonds(m.numbers, m.positions) for m in molecules]
        self.endings: dict[int, tuple[str, str]] = {}  # of lost runs: which of criteria, and why
        self.displaced: list[float | None] = [None for _ in batch.runs]
        self.done = 0  # frames after the first
        self.spent = -time.process_time()  # CPU seconds, when the time now is added
        self.saved = time.monotonic()
        self.state = self.folder.partial(batch.key)
        self.replicas = self._resume() if self.state.is_file() else self._start()
        if self.watched is not None:
            self.watched.attach(self.replicas)

    def go(self) -> list[Json]:
        s, count = self.scenario, len(self.batch.runs)
        self._note_lost()
        if not self.frames[0]:
            start = [s.thermostat(run.temperature, 0) for run in self.batch.runs]
            self._record(np.array(start), np.arange(count))  # lost ones too: a run has a frame
        while self.done < s.frames and self.replicas.alive.any():
            target = [s.thermostat(run.temperature, self.done + 1) for run in self.batch.runs]
            if s.end_temperature is not None:
                self.replicas.temperatures = target
            self._forget_trouble()
            self.replicas.step(s.stride)
            self._note_lost()
            self.done += 1
            self._record(np.array(target), self.replicas.alive.nonzero()[0])
            self._remove_pieces()
            if time.monotonic() - self.saved > CHECKPOINT:
                self._save()
        self._save()  # whoever keeps the records removes it
        for r, run in enumerate(self.batch.runs):
            write_trajectory(
                self.folder.trajectory(run.id), np.array(self.frames[r]), self._interval
            )
        return [self._record_of(r) for r in range(count)]

    # --- what ends a run -----------------------------------------------------------------------

    def _remove_pieces(self) -> None:
        alive = [int(r) for r in self.replicas.alive.nonzero()[0]]
        if pieces := [r for r in alive if self._in_pieces(r)]:
            why = f"in pieces: a bond {self.batch.torn:g} Å longer than at the start"
            self.endings |= {r: (PIECES, why) for r in pieces}
            self.replicas.remove(pieces)

    def _in_pieces(self, r: int) -> bool:
        """Is the last frame of a run one of fragments, far from each other?"""
        molecule, now = self.batch.runs[r].molecule, self.frames[r][-1]
        bonds = self.bonds[r]
        grown = bond_lengths(now[None], bonds) - bond_lengths(molecule.positions[None], bonds)
        return bool((grown > self.batch.torn).any())

    def _note_lost(self) -> None:
        """Say of runs that were lost just now what it was."""
        for r in self.replicas.lost:
            self.endings.setdefault(r, self._ending())

    def _ending(self) -> tuple[str, str]:
        if isinstance(self.model, CalculatorModel) and self.model.trouble:
            return CALCULATOR if self.model.failed else INTEGRATOR, self.model.trouble
        return INTEGRATOR, "hotter than its thermostat by 10,000 K, or a NaN"

    def _forget_trouble(self) -> None:
        """What a calculator could not do before, and got over, explains nothing that follows."""
        if isinstance(self.model, CalculatorModel):
            self.model.forget()

    @property
    def _interval(self) -> float:
        return self.scenario.stride * self.scenario.timestep

    def _record(self, thermostat: NDArray[np.float64], systems: NDArray[np.int64]) -> None:
        replicas = self.replicas
        positions = replicas.positions
        now = (replicas.temperature, thermostat, replicas.potential, replicas.kinetic)
        for r in systems:
            self.frames[r].append(positions[r].astype(np.float32))
            for name, values in zip(_SERIES, now, strict=True):
                self.series[name][r].append(float(values[r]))

    # --- start ---------------------------------------------------------------------------------

    def _start(self) -> Replicas:
        s, runs = self.scenario, self.batch.runs
        molecules = [run.molecule for run in runs]
        relaxed = [
            x if apart(x) else molecule.positions
            for x, molecule in zip(relax(self.model, molecules), molecules, strict=True)
        ]
        if self.watched is not None:
            self.watched.relaxed(molecules, relaxed)
        self._forget_trouble()
        starts = [self._from(r, x) for r, x in enumerate(relaxed)]
        if s.ensemble == "nvt":
            replicas = self._replicas(starts, s.friction)
            replicas.remove(sorted(self.endings))
            return replicas
        first = self._replicas(starts, FRICTION)
        first.step(round(1000 * EQUILIBRATION / s.timestep))
        fused = {r for r, x in enumerate(first.positions) if not apart(x)}
        now = [starts[r] if r in fused else x for r, x in enumerate(first.positions)]
        replicas = self._replicas(now, None, first.velocities)
        replicas.remove(sorted({*first.lost, *fused, *self.endings}))
        return replicas

    def _from(self, r: int, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N, 3] Å, distorted where the scenario says so. One that cannot be is not simulated."""
        run, spread = self.batch.runs[r], self.scenario.distortion
        if not spread:
            return x
        try:
            moved = distort(run.molecule, x, spread, run.random)
        except UnsupportedSystemError as error:
            self.endings[r] = START, str(error)
            return x
        self.displaced[r] = round(float(np.sqrt(np.mean((moved - x) ** 2))), 5)
        return moved

    def _replicas(
        self,
        positions: Sequence[NDArray],
        friction: float | None,
        velocities: Sequence[NDArray] | None = None,
    ) -> Replicas:
        return Replicas(
            self.model,
            [run.molecule.numbers for run in self.batch.runs],
            positions,
            temperatures=[run.temperature for run in self.batch.runs],
            timestep=self.scenario.timestep,
            friction=friction,
            seeds=[run.random for run in self.batch.runs],
            velocities=velocities,
        )

    # --- states on disk ------------------------------------------------------------------------

    def _save(self) -> None:
        content: dict[str, Any] = dict(self.replicas.state_dict())
        for r in range(len(self.batch.runs)):
            content[f"frames {r}"] = np.array(self.frames[r], dtype=np.float32)
            for name, values in self.series.items():
                content[f"{name} {r}"] = np.array(values[r])
        content |= {"done": self.done, "spent": self.spent + time.process_time()}
        content["runs"] = np.array([run.key for run in self.batch.runs])
        flags = list(self.watched.first.items()) if self.watched is not None else []
        content["told"] = np.array(json.dumps([list(self.endings.items()), self.displaced, flags]))
        self.state.parent.mkdir(exist_ok=True)
        temporary = self.state.with_name(f".{self.state.name}")
        with temporary.open("wb") as file:
            np.savez(file, **content)
        temporary.replace(self.state)
        self.saved = time.monotonic()

    def _resume(self) -> Replicas:
        with np.load(self.state) as file:
            state = dict(file)
        friction = None if self.scenario.ensemble == "nve" else self.scenario.friction
        # the geometries only have to pass the door; the state replaces them
        replicas = self._replicas([run.molecule.positions for run in self.batch.runs], friction)
        replicas.load_state_dict(state)
        for r in range(len(self.batch.runs)):
            self.frames[r] = list(state[f"frames {r}"])
            for name, values in self.series.items():
                values[r] = state[f"{name} {r}"].tolist()
        if "told" in state:
            endings, self.displaced, *flags = json.loads(state["told"].item())
            self.endings = {r: (ending, reason) for r, (ending, reason) in endings}
            if not flags:  # a state from before there were any: its first part had no guard
                self.watched = None
            elif self.watched is not None:
                self.watched.first = dict(flags[0])
        self.done = int(state["done"])
        self.spent += float(state["spent"])
        return replicas

    # --- records -------------------------------------------------------------------------------

    def _record_of(self, r: int) -> Json:
        run, lost = self.batch.runs[r], self.replicas.lost
        ending, reason = self.endings.get(r, ("", ""))
        told = asdict(run.scenario)
        for name in ("sets", "temperatures", "seeds", "count", "interval"):
            del told[name]
        told["scenario"] = told.pop("name")
        atoms = [len(other.molecule.numbers) for other in self.batch.runs]
        share = atoms[r] / sum(atoms)
        return {
            "kind": "run",
            "id": run.id,
            "key": run.key,
            **told,
            "molecule": run.molecule.name,
            "set": run.molecule.set,
            "seed": run.seed,
            "temperature": run.temperature,
            "displaced": self.displaced[r],
            "interval": self._interval,
            "steps": lost.get(r, self.done * self.scenario.stride),
            "lost": r in lost,
            "ending": ending,
            "reason": reason,
            **{name: [_short(v) for v in self.series[name][r]] for name in _SERIES},
            "last": np.round(self.replicas.positions[r], 4).tolist() if r in lost else None,
            "trajectory": self.folder.trajectory(run.id).name,
            "guarded": self.watched is not None,
            "flag": self.watched.first.get(r) if self.watched is not None else None,
            "engine": self.model.engine,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "cpu_seconds": round(share * (self.spent + time.process_time()), 3),
        }


def _short(value: float) -> float | None:
    """Nine digits for JSON; None for what is no number: only where a run was lost at its start."""
    return float(f"{value:.9g}") if np.isfinite(value) else None
