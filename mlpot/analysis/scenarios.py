"""What is simulated: scenarios, the modes dev, fast and standard, and the list of runs."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mlpot.analysis.molecules import Molecule
from mlpot.errors import InputError

#: of records and summaries; raised when their meaning changes
VERSION = 1

#: ps of constant temperature before a run at constant energy
EQUILIBRATION = 0.5

#: 1/ps, of thermostats
FRICTION = 10.0


@dataclass(frozen=True)
class Scenario:
    """One kind of simulation, of every molecule of some sets.

    Attributes:
        name: ladder, long, ramp, nve, distorted, large, groups or reference.
        sets: of molecules; see `mlpot.analysis.molecules.SETS`.
        temperatures: K; each is a run of its own.
        picoseconds: length.
        seeds: runs of each molecule and temperature.
        end_temperature: K, reached linearly at the end of a ramp; None stays.
        ensemble: nvt (Langevin), or nve from velocities of a short equilibration.
        timestep: fs.
        friction: 1/ps, of the thermostat.
        distortion: Å, standard deviation of random displacements of the relaxed start.
        interval: fs between stored frames.
        count: so many molecules, evenly spread over the list; None takes all.
    """

    name: str
    sets: tuple[str, ...]
    temperatures: tuple[float, ...]
    picoseconds: float
    seeds: int = 1
    end_temperature: float | None = None
    ensemble: Literal["nvt", "nve"] = "nvt"
    timestep: float = 0.5
    friction: float = FRICTION
    distortion: float = 0.0
    interval: float = 20.0
    count: int | None = None

    def __post_init__(self) -> None:
        positive = (self.picoseconds, self.timestep, self.interval, self.seeds)
        if not (self.temperatures and min(positive) > 0 and min(self.temperatures) >= 0):
            raise InputError(
                f"scenario {self.name}: lengths, time steps, intervals and seeds must be "
                "positive, and temperatures 0 K or more"
            )
        if self.stride < 1 or self.frames < 1:
            raise InputError(
                f"scenario {self.name}: {self.picoseconds:g} ps at {self.timestep:g} fs hold no "
                f"frame every {self.interval:g} fs. Give a longer run or a shorter interval"
            )

    @property
    def stride(self) -> int:
        """Steps between stored frames."""
        return round(self.interval / self.timestep)

    @property
    def frames(self) -> int:
        """Stored frames after the first."""
        return round(1000 * self.picoseconds / (self.timestep * max(1, self.stride)))

    @property
    def steps(self) -> int:
        return self.frames * self.stride

    def thermostat(self, temperature: float, frame: int) -> float:
        """K, while frame ``frame`` (from 1) is approached."""
        if self.end_temperature is None:
            return temperature
        return temperature + (self.end_temperature - temperature) * frame / self.frames


@dataclass(frozen=True, eq=False)
class Planned:
    """One run that is to be done."""

    scenario: Scenario
    molecule: Molecule
    temperature: float  # K
    seed: int  # 0, 1, ...

    @property
    def key(self) -> str:
        """Hash of all that decides its course, but the model."""
        told = asdict(self.scenario)
        for name in ("sets", "temperatures", "seeds", "count"):  # which runs, not how they go
            del told[name]
        what = [VERSION, told, self.molecule.key, self.temperature, self.seed]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    @property
    def told(self) -> dict[str, Any]:
        """All of the scenario, and this run's temperature."""
        return {**asdict(self.scenario), "temperature": self.temperature}

    @property
    def random(self) -> int:
        """Seed of its random numbers: another for every molecule, scenario and temperature."""
        return int(self.key[:8], 16) >> 1

    @property
    def id(self) -> str:
        """Name of its files."""
        s = self.scenario
        return f"{s.name}-{self.molecule.name}-{self.temperature:g}K-{self.seed}-{self.key[:6]}"


def plan(scenarios: Sequence[Scenario], molecules: Sequence[Molecule]) -> list[Planned]:
    """All runs, scenario by scenario; none twice."""
    found: dict[str, Planned] = {}
    for scenario in scenarios:
        for run in _runs(scenario, molecules):
            found.setdefault(run.key, run)
    return list(found.values())


def _runs(scenario: Scenario, molecules: Sequence[Molecule]) -> Iterator[Planned]:
    of_sets = [m for m in molecules if m.set in scenario.sets]
    chosen = of_sets
    if scenario.count is not None and len(of_sets) > scenario.count:
        spread = np.arange(scenario.count) * len(of_sets) // scenario.count
        chosen = [of_sets[i] for i in spread]
    for temperature in scenario.temperatures:
        for molecule in chosen:
            for seed in range(scenario.seeds):
                yield Planned(scenario, molecule, temperature, seed)


_MAIN = ("standard", "own")


def _nve(seconds: float, count: int, *timesteps: float) -> tuple[Scenario, ...]:
    """Five seeds, because an interval over fewer says little."""
    return tuple(
        Scenario(
            "nve", _MAIN, (300.0,), seconds, 5, ensemble="nve", timestep=dt, interval=10.0,
            count=count,
        )
        for dt in timesteps
    )  # fmt: skip


MODES: dict[str, tuple[Scenario, ...]] = {
    # every part once, in seconds to a minute or two: says that things work, and not how well
    "dev": (
        Scenario("ladder", _MAIN, (300.0, 1000.0), 0.1, count=2),
        Scenario("ramp", _MAIN, (300.0,), 0.2, end_temperature=3000.0, count=1),
        *_nve(0.1, 1, 0.5, 1.0),
        Scenario("distorted", _MAIN, (300.0,), 0.2, distortion=0.05, count=1),
        Scenario("groups", ("groups",), (300.0,), 0.06, count=2),
        Scenario("large", ("large",), (300.0,), 0.04, count=1),
        Scenario("reference", ("reference",), (300.0,), 0.2, count=1),
    ),
    # minutes on a laptop
    "fast": (
        Scenario("ladder", _MAIN, (300.0, 500.0, 1000.0), 1.0, 2, count=4),
        Scenario("ramp", _MAIN, (300.0,), 2.0, end_temperature=3000.0, count=3),
        *_nve(1.0, 1, 0.5, 1.0),
        Scenario("distorted", _MAIN, (300.0,), 0.5, distortion=0.05, count=3),
        Scenario("distorted", _MAIN, (300.0,), 0.5, distortion=0.1, count=3),
        Scenario("groups", ("groups",), (300.0, 1000.0), 1.0, count=3),
        Scenario("large", ("large",), (300.0,), 0.5, count=1),
        Scenario("reference", ("reference",), (300.0,), 2.0),
    ),
    # what the goals of benchmarks/stability are checked with: core-hours. At 1 fs, the longest
    # step in use without constraints: a harder test than 0.5 fs, in half the time
    "standard": (
        Scenario("ladder", _MAIN, (300.0, 500.0, 1000.0), 20.0, 3, timestep=1.0),
        Scenario("ladder", _MAIN, (800.0, 1200.0), 10.0, timestep=1.0),
        Scenario("long", _MAIN, (300.0,), 200.0, timestep=1.0, count=5),
        Scenario("ramp", _MAIN, (300.0,), 10.0, end_temperature=3000.0),
        *_nve(5.0, 2, 0.25, 0.5, 1.0),
        Scenario("distorted", _MAIN, (300.0,), 5.0, timestep=1.0, distortion=0.05),
        Scenario("distorted", _MAIN, (300.0,), 5.0, timestep=1.0, distortion=0.1),
        Scenario("groups", ("groups",), (300.0, 500.0, 1000.0), 10.0, 3, timestep=1.0),
        Scenario("large", ("large",), (300.0, 500.0), 10.0, timestep=1.0),
        Scenario("reference", ("reference",), (300.0,), 20.0, 3, timestep=1.0),
    ),
}
