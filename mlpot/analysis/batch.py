"""Runs of one scenario, integrated side by side by `Replicas`; goes on from a state on disk."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from mlpot.analysis.criteria import bond_lengths, find_bonds
from mlpot.analysis.molecules import Molecule
from mlpot.analysis.records import Folder, Json, write_trajectory
from mlpot.analysis.scenarios import EQUILIBRATION, FRICTION, Planned, Scenario
from mlpot.analysis.subjects import CalculatorModel, Subject
from mlpot.deploy.engines import DeployedModel
from mlpot.errors import UnsupportedSystemError
from mlpot.md.replicas import Replicas
from mlpot.md.settings import MINIMIZE
from mlpot.neighbors import OVERLAP

#: seconds between states on disk: what a kill can cost
CHECKPOINT = 60.0

#: Å, of distorted starts: the most a bond is off, and the closest two atoms come
STRAIN, CLOSEST = 0.3, 0.8

#: Å longer than at the start: whatever rule a run is judged by, such a bond has broken it. What is
#: in pieces is not integrated any further
PIECES = 5.0

_SERIES = ("temperatures", "thermostat", "potential", "kinetic")


@dataclass(frozen=True, eq=False)
class Batch:
    """Runs of one scenario that are integrated together, and where their files go."""

    subject: Subject
    runs: tuple[Planned, ...]
    folder: str

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


def run_batch(batch: Batch) -> Json:
    """Simulate, write the trajectories, and return the records."""
    return {"records": _Going(batch).go()}


class _Going:
    """A batch on its way. One frame every stride; of lost systems none."""

    def __init__(self, batch: Batch):
        self.batch, self.scenario = batch, batch.scenario
        self.folder = Folder(batch.folder)
        self.model = batch.subject.open()
        self.frames: list[list[NDArray[np.float32]]] = [[] for _ in batch.runs]
        self.series: dict[str, list[list[float]]] = {s: [[] for _ in batch.runs] for s in _SERIES}
        molecules = [run.molecule for run in batch.runs]
        self.bonds = [find_bonds(m.numbers, m.positions) for m in molecules]
        self.done = 0  # frames after the first
        self.spent = -time.process_time()  # CPU seconds, when the time now is added
        self.saved = time.monotonic()
        self.state = self.folder.partial(batch.key)
        self.replicas = self._resume() if self.state.is_file() else self._start()

    def go(self) -> list[Json]:
        s, count = self.scenario, len(self.batch.runs)
        if not self.frames[0]:
            start = [s.thermostat(run.temperature, 0) for run in self.batch.runs]
            self._record(np.array(start), np.arange(count))  # lost ones too: a run has a frame
        while self.done < s.frames and self.replicas.alive.any():
            target = [s.thermostat(run.temperature, self.done + 1) for run in self.batch.runs]
            if s.end_temperature is not None:
                self.replicas.temperatures = target
            self.replicas.step(s.stride)
            self.done += 1
            self._record(np.array(target), self.replicas.alive.nonzero()[0])
            if pieces := [int(r) for r in self.replicas.alive.nonzero()[0] if self._pieces(int(r))]:
                self.replicas.remove(pieces)
            if time.monotonic() - self.saved > CHECKPOINT:
                self._save()
        self._save()  # whoever keeps the records removes it
        for r, run in enumerate(self.batch.runs):
            write_trajectory(
                self.folder.trajectory(run.id), np.array(self.frames[r]), self._interval
            )
        return [self._record_of(r) for r in range(count)]

    def _pieces(self, r: int) -> bool:
        """Is the last frame of a run one of fragments, far from each other?"""
        molecule, now = self.batch.runs[r].molecule, self.frames[r][-1]
        bonds = self.bonds[r]
        grown = bond_lengths(now[None], bonds) - bond_lengths(molecule.positions[None], bonds)
        return bool((grown > PIECES).any())

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
        relaxed = relax(self.model, [run.molecule for run in runs])
        starts = [
            distort(
                run.molecule, x if apart(x) else run.molecule.positions, s.distortion, run.random
            )
            for x, run in zip(relaxed, runs, strict=True)
        ]
        if s.ensemble == "nvt":
            return self._replicas(starts, s.friction)
        first = self._replicas(starts, FRICTION)
        first.step(round(1000 * EQUILIBRATION / s.timestep))
        fused = {r for r, x in enumerate(first.positions) if not apart(x)}
        now = [starts[r] if r in fused else x for r, x in enumerate(first.positions)]
        replicas = self._replicas(now, None, first.velocities)
        replicas.remove(sorted({*first.lost, *fused}))
        return replicas

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
        self.done = int(state["done"])
        self.spent += float(state["spent"])
        return replicas

    # --- records -------------------------------------------------------------------------------

    def _record_of(self, r: int) -> Json:
        run, lost = self.batch.runs[r], self.replicas.lost
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
            "interval": self._interval,
            "steps": lost.get(r, self.done * self.scenario.stride),
            "lost": r in lost,
            "reason": self._reason(r) if r in lost else "",
            **{name: [_short(v) for v in self.series[name][r]] for name in _SERIES},
            "last": np.round(self.replicas.positions[r], 4).tolist() if r in lost else None,
            "trajectory": self.folder.trajectory(run.id).name,
            "engine": self.model.engine,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "cpu_seconds": round(share * (self.spent + time.process_time()), 3),
        }

    def _reason(self, r: int) -> str:
        if self._pieces(r):
            return f"in pieces: a bond {PIECES:g} Å longer than at the start"
        if isinstance(self.model, CalculatorModel) and self.model.trouble:
            return self.model.trouble
        return "hotter than its thermostat by 10,000 K, or a NaN"


def _short(value: float) -> float | None:
    """Nine digits for JSON; None for what is no number: only where a run was lost at its start."""
    return float(f"{value:.9g}") if np.isfinite(value) else None


def relax(model: DeployedModel, molecules: Sequence[Molecule]) -> list[NDArray[np.float64]]:
    """Geometries [N, 3] Å a little downhill from those given; equal molecules once.

    Raises:
        UnsupportedSystemError: a calculator that cannot do the geometry as given. A model that
            falls into a hole on the way down is what the suite is there to see, and no error.
    """
    different = list({molecule.key: molecule for molecule in molecules}.values())
    if isinstance(model, CalculatorModel):
        for molecule in different:
            _check_runs(model, molecule)
    numbers = [molecule.numbers for molecule in different]
    given = [molecule.positions for molecule in different]
    replicas = Replicas(model, numbers, given, temperatures=0.0)
    replicas.minimize(MINIMIZE)
    found = dict(zip((m.key for m in different), replicas.positions, strict=True))
    return [found[molecule.key] for molecule in molecules]


def _check_runs(model: CalculatorModel, molecule: Molecule) -> None:
    try:
        model.evaluate(molecule.numbers, molecule.positions)
    except Exception as error:  # calculators raise whatever they like
        raise UnsupportedSystemError(
            f"{molecule.name}: {model.info.name} cannot do the start geometry "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error


def apart(positions: NDArray[np.float64], closest: float = OVERLAP) -> bool:
    """Would `Replicas` take such a start? A model without repulsion may fuse atoms in relaxing."""
    return len(positions) < 2 or bool(pdist(positions).min() > closest)


def distort(
    molecule: Molecule,
    positions: NDArray[np.float64],
    spread: float,
    seed: int,
    tries: int = 100,
) -> NDArray[np.float64]:
    """Positions [N, 3] Å with every coordinate displaced at random, by ``spread`` Å.

    Drawn again, a little smaller each time, while a bond is off by more than 0.3 Å or two atoms
    come closer than 0.8 Å: from there a hydrogen may fly off by the laws of nature.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 0)))
    bonds = find_bonds(molecule.numbers, molecule.positions)
    still = bond_lengths(positions[None], bonds)
    for attempt in range(tries if spread else 0):
        moved = positions + 0.98**attempt * spread * rng.standard_normal(positions.shape)
        strained = np.abs(bond_lengths(moved[None], bonds) - still) > STRAIN
        if not strained.any() and apart(moved, CLOSEST):
            return moved
    return positions.copy()
