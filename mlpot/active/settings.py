"""What a refinement is asked to do, apart from the labeller and the training recipe."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from mlpot.errors import InputError

#: steps between checks of the guard, and between looks at lengths: more often than a bare run has
#: them, because frames to label are taken there
INTERVAL, LOOK = 25, 5


@dataclass(frozen=True)
class RefineSettings:
    """How to simulate, and which frames to label.

    Attributes:
        temperatures: K; it is done when the guard is quiet at all of them.
        ps: length of every simulation, ps.
        replicas: copies of the molecule at each temperature.
        rounds: trainings at most; after the last one the model is simulated once more.
        frames: flagged frames that are labelled in a round, at most.
        initial: frames of the first round that nothing flagged, at the lowest temperature.
        timestep: fs.
        friction: 1/ps.
        spacing: ps, between two frames of one replica, at least.
        linger: ps that a replica goes on after its first flag.
        max_force: eV/Å; a frame with a larger labelled force on an atom is left out.
        seed: of velocities and thermostat; every round and replica has its own.
        engine: one of `mlpot.deploy.engines.ENGINES`, or ``auto``.
        threads: CPU threads of the simulations; None is torch's choice.

    Raises:
        InputError: a value that makes no sense.
    """

    temperatures: tuple[float, ...] = (300.0, 600.0)
    ps: float = 5.0
    replicas: int = 8
    rounds: int = 5
    frames: int = 50
    initial: int = 50
    timestep: float = 0.5
    friction: float = 10.0
    spacing: float = 0.025
    linger: float = 0.2
    max_force: float = 30.0
    seed: int = 0
    engine: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        temperatures = tuple(float(t) for t in self.temperatures)
        if not temperatures or not all(0 < t < math.inf for t in temperatures):
            raise InputError(f"temperatures must be positive, in K, got {list(temperatures)}")
        object.__setattr__(self, "temperatures", tuple(sorted(set(temperatures))))
        for name in ("ps", "replicas", "rounds", "frames", "timestep", "max_force"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("friction", "spacing", "linger", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.initial < 10:
            raise InputError(
                f"initial must be 10 or more, got {self.initial}: the first round trains and "
                "validates on these frames"
            )
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be positive, got {self.threads}")
        if self.steps < INTERVAL:
            raise InputError(
                f"{self.ps:g} ps are {self.steps} steps of {self.timestep:g} fs, and the guard "
                f"looks every {INTERVAL}. Simulate longer"
            )

    @property
    def steps(self) -> int:
        """Of every simulation."""
        return round(self.ps * 1000 / self.timestep)

    def steps_in(self, ps: float) -> int:
        """Steps that take so long."""
        return round(ps * 1000 / self.timestep)

    def told(self) -> dict[str, Any]:
        """What decides the results, as JSON: not how many rounds, nor on how many threads."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("rounds", "threads")}
        return kept | {"temperatures": list(self.temperatures)}
