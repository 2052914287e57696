"""`Replicas`: many molecules integrated side by side, with one call of the model a step.

One small molecule cannot fill a machine: most of a step is overhead that a batch pays once. The
systems may be copies of one molecule or different molecules; each has its own temperature and
its own random numbers, and does not notice the others.

Constant temperature is the Langevin middle scheme of Zhang, Liu, Yan, Tuckerman and Liu, J. Phys.
Chem. A 123, 6056 (2019), as in OpenMM's LangevinMiddleIntegrator: kick, half a drift,
thermostat, half a drift. Constant energy is velocity Verlet. Positions and velocities are
float64 whatever the precision of the model.

The centre of mass of every system rests: starting velocities and random kicks have no net
momentum, forces have none by construction. So a system of N atoms has 3 N - 3 degrees of
freedom, and the kicks sample exactly the distribution of those.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mlpot.deploy.engines import DeployedModel
from mlpot.errors import InputError
from mlpot.graph import Graph
from mlpot.md.pairs import PairList
from mlpot.md.relax import fire
from mlpot.md.systems import BLOCK, Systems, check_systems, to_device
from mlpot.md.velocities import maxwell_boltzmann
from mlpot.units import ACCELERATION, BOLTZMANN

#: K above its thermostat at which a system counts as broken; no molecule stays one there
BLOWN_UP = 10000.0


class Observer(Protocol):
    """What is called, with the replicas, every `interval` steps."""

    interval: int

    def __call__(self, replicas: "Replicas", /) -> None: ...


class _State(NamedTuple):
    """Where b systems of n atoms are, float64."""

    positions: Tensor  # [n, 3] Å
    velocities: Tensor  # [n, 3] Å/fs
    forces: Tensor  # [n, 3] eV/Å
    potential: Tensor  # [b] eV

    def take(self, atoms: Tensor, systems: Tensor) -> "_State":
        x, v, f, potential = self
        return _State(x[atoms], v[atoms], f[atoms], potential[systems])

    def put(self, atoms: Tensor, systems: Tensor, part: "_State") -> "_State":
        """A copy in which these atoms and systems are as in ``part``."""
        return _State(
            self.positions.index_copy(0, atoms, part.positions),
            self.velocities.index_copy(0, atoms, part.velocities),
            self.forces.index_copy(0, atoms, part.forces),
            self.potential.index_copy(0, systems, part.potential),
        )


class Replicas:
    """Systems without a box, in motion.

    A system that breaks (NaN, or hotter than its temperature + 10,000 K) is taken out and stays
    as it was one step before; the others go on.

    Args:
        model: from `mlpot.deploy.load.load`; one call of ``predict`` evaluates all systems.
        numbers: atomic numbers [N_r] of each of R systems.
        positions: [N_r, 3] Å of each.
        masses: [N_r] amu of each; None takes those of the elements.
        temperatures: K, one for all or one each; may be changed on the way.
        timestep: fs.
        friction: 1/ps, of the thermostat; None for constant energy.
        seeds: one each, or the first of consecutive ones. A trajectory depends on its own seed
            and not on what runs beside it (beyond the rounding of the model).
        velocities: [N_r, 3] Å/fs of each; None draws them at the temperatures.

    Attributes:
        systems: what stays fixed: numbers, masses, seeds.
        steps: done so far.
        lost: system -> number of its sound steps, for those that broke or were removed.
        observers: called on the way; they may `remove` systems.

    Raises:
        InputError: shapes that do not fit, NaN or overlapping positions, senseless options.
        UnsupportedSystemError: an element that the model does not cover.
    """

    _all: _State  # of every system; of those in the batch it is out of date
    _now: _State  # of the batch
    _block: int  # whose random numbers are at hand

    def __init__(
        self,
        model: DeployedModel,
        numbers: Sequence[ArrayLike],
        positions: Sequence[ArrayLike],
        *,
        masses: Sequence[ArrayLike] | None = None,
        temperatures: float | ArrayLike = 300.0,
        timestep: float = 0.5,
        friction: float | None = 10.0,
        seeds: int | Sequence[int] = 0,
        velocities: Sequence[ArrayLike] | None = None,
    ):
        if not 0 < timestep < math.inf or not (friction is None or 0 <= friction < math.inf):
            raise InputError(
                "timestep must be positive, and friction None or not negative, got "
                f"{timestep} fs and {friction} 1/ps"
            )
        self.model = model
        self.timestep = float(timestep)
        self.friction = friction
        self.steps = 0
        self.lost: dict[int, int] = {}
        self.observers: list[Observer] = []
        self.systems = systems = Systems(numbers, masses, seeds)
        start = systems.checked("positions", positions)
        check_systems(model, systems, start)
        if len(systems) > 1 and isinstance(model, DeployedModel):
            model.prepare(max(systems.sizes), len(systems))
        self._temperatures = systems.per_system("temperatures", temperatures)
        if velocities is None:
            drawn = zip(systems.masses, self._temperatures, systems.seeds, strict=True)
            velocities = [maxwell_boltzmann(*of) for of in drawn]
        speeds = systems.checked("velocities", velocities)
        x, v = (to_device(np.concatenate(a), model.device) for a in (start, speeds))
        unknown = torch.full_like(x, math.nan)
        self._all = _State(x, v, unknown, x.new_full((len(systems),), math.nan))
        self._pack(np.arange(len(systems)))
        self._restart(x)

    # --- what is where ---------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.systems)

    @property
    def alive(self) -> NDArray[np.bool_]:
        """[R], which systems are still integrated."""
        return np.isin(np.arange(len(self)), self._living)

    @property
    def positions(self) -> list[NDArray[np.float64]]:
        """[N_r, 3] Å of each system; of a lost one, where it was last sound."""
        return self.systems.split(self._whole().positions)

    @property
    def velocities(self) -> list[NDArray[np.float64]]:
        """[N_r, 3] Å/fs of each system; with a thermostat half a step behind the positions."""
        return self.systems.split(self._whole().velocities)

    @property
    def forces(self) -> list[NDArray[np.float64]]:
        """[N_r, 3] eV/Å of each system."""
        return self.systems.split(self._whole().forces)

    @property
    def potential(self) -> NDArray[np.float64]:
        """[R] eV, total."""
        return self._whole().potential.cpu().numpy()

    @property
    def kinetic(self) -> NDArray[np.float64]:
        """[R] eV"""
        pairs = zip(self.systems.masses, self.velocities, strict=True)
        return np.array([m @ (v * v).sum(axis=1) for m, v in pairs]) / (2 * ACCELERATION)

    @property
    def temperature(self) -> NDArray[np.float64]:
        """[R] K, of the motion; `temperatures` are those of the thermostat."""
        return 2.0 * self.kinetic / (self.systems.degrees * BOLTZMANN)

    @property
    def temperatures(self) -> NDArray[np.float64]:
        """[R] K, of the thermostat. Set it between steps for a heating ramp."""
        return self._temperatures.copy()

    @temperatures.setter
    def temperatures(self, value: float | ArrayLike) -> None:
        self._temperatures = self.systems.per_system("temperatures", value)
        self._set_thermostat()

    def graph(self) -> Graph:
        """The living systems, in their order, as the model sees them."""
        return self._graph(self._now.positions)

    # --- motion ----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, count: int = 1) -> None:
        """Integrate the living systems; returns early when none is left."""
        for _ in range(count):
            if not len(self._living):
                return
            before = self._now
            self._now = self._verlet(before) if self.friction is None else self._langevin(before)
            self.steps += 1
            self._weed(before, self.steps - 1)
            for observer in self.observers:
                if self.steps % observer.interval == 0:
                    observer(self)

    @torch.no_grad()
    def minimize(self, iterations: int = 200, fmax: float = 0.1) -> None:
        """Go downhill (FIRE) until no force exceeds fmax (eV/Å); velocities stay as they are.

        A system that would come out no lower stays where it is.
        """
        if not len(self._living):
            return
        start, count = self._now, len(self._living)
        x = fire(
            lambda x: self._evaluate(x)[0], start.positions, self._owner, count, iterations, fmax
        )
        lower = self._evaluate(x)[1] < start.potential
        self._restart(torch.where(lower[self._owner, None], x, start.positions))

    def remove(self, systems: Sequence[int]) -> None:
        """Take systems out of the batch; they stay as they are."""
        unknown = [r for r in systems if not 0 <= r < len(self)]
        if unknown:
            raise InputError(f"there is no system {unknown[0]}; there are 0 to {len(self) - 1}")
        self._drop(np.isin(self._living, systems), self._now, self.steps)

    def _verlet(self, s: _State) -> _State:
        v = torch.addcmul(s.velocities, self._kick, s.forces, value=0.5)
        x = torch.add(s.positions, v, alpha=self.timestep)
        forces, potential = self._evaluate(x)
        return _State(x, torch.addcmul(v, self._kick, forces, value=0.5), forces, potential)

    def _langevin(self, s: _State) -> _State:
        v = torch.addcmul(s.velocities, self._kick, s.forces)
        x = torch.add(s.positions, v, alpha=0.5 * self.timestep)
        v = torch.addcmul(v * self._damping, self._spread, self._random())
        x = torch.add(x, v, alpha=0.5 * self.timestep)
        return _State(x, v, *self._evaluate(x))

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Forces [n, 3] eV/Å and potential energies [b] eV, float64."""
        graph = self._graph(x)
        with torch.enable_grad():  # forces are gradients, and TorchScript cannot switch them on
            prediction = self.model.predict(graph)
        return prediction.forces.detach().double(), prediction.energy.detach().double()

    def _graph(self, x: Tensor) -> Graph:
        edges = self._pairs(x)
        shifts = self._cells.new_zeros(edges.shape[1], 3)
        moved = x.to(self.model.dtype)
        return Graph(self._numbers, moved, edges, shifts, self._owner, self._cells)

    def _random(self) -> Tensor:
        """[n, 3] 1/sqrt(amu), the random kicks of this step."""
        block, row = divmod(self.steps, BLOCK)
        if block != self._block:
            drawn = [self.systems.kicks(r, block) for r in self._living]
            self._kicks = to_device(np.concatenate(drawn, axis=1), self.model.device)
            self._block = block
        return self._kicks[row]

    # --- who is in the batch ---------------------------------------------------------------

    def _pack(self, living: NDArray[np.int64]) -> None:
        """Make these systems the batch: everything that depends on which they are."""
        device, all_ = self.model.device, self.systems
        self._living = living
        sizes = [all_.sizes[r] for r in living]
        atoms = all_.atoms(living)
        self._here = to_device(atoms, device), to_device(living, device)
        self._numbers = to_device(np.concatenate(all_.numbers)[atoms], device)
        self._mass = to_device(np.concatenate(all_.masses)[atoms, None], device)
        self._owner = to_device(np.repeat(np.arange(len(living)), sizes), device)
        self._kick = self.timestep * ACCELERATION / self._mass
        self._cells = torch.zeros(len(living), 3, 3, dtype=self.model.dtype, device=device)
        self._pairs = PairList(sizes, self.model.cutoff, device=device)
        self._block = -1  # no random numbers drawn yet
        self._now = self._all.take(*self._here)
        self._set_thermostat()

    def _set_thermostat(self) -> None:
        """Damping, size of the random kicks, and the heat that is too much."""
        target = self._temperatures[self._living]
        decay = (self.friction or 0.0) * self.timestep / 1000
        self._damping = math.exp(-decay)
        spread = np.sqrt(BOLTZMANN * target * ACCELERATION * -math.expm1(-2 * decay))
        self._spread = to_device(spread, self.model.device)[self._owner, None]
        limit = self.systems.degrees[self._living] * BOLTZMANN * (target + BLOWN_UP)
        self._limit = to_device(ACCELERATION * limit, self.model.device)  # of the sum of m v^2

    def _weed(self, before: _State, steps: int) -> None:
        """Take out what is broken, and leave it as it was before."""
        now = self._now
        heat = (now.velocities.square() * self._mass).sum(1)
        heat = torch.zeros_like(self._limit).index_add(0, self._owner, heat)
        sound = (heat < self._limit) & torch.isfinite(now.potential)  # false for NaN
        if not bool(sound.all()):
            self._drop(~sound.cpu().numpy(), before, steps)

    def _drop(self, gone: NDArray[np.bool_], last: _State, steps: int) -> None:
        """Of the batch, leave those ``gone`` as in ``last``, and pack the others again."""
        leaving = to_device(gone, self.model.device)
        inside = leaving[self._owner].nonzero()[:, 0], leaving.nonzero()[:, 0]
        there = self._here[0][inside[0]], self._here[1][inside[1]]
        self._all = self._whole().put(*there, last.take(*inside))
        self.lost |= {int(r): steps for r in self._living[gone]}
        self._pack(self._living[~gone])

    def _whole(self) -> _State:
        """The state of all systems, lost ones included."""
        return self._all.put(*self._here, self._now)

    @torch.no_grad()
    def _restart(self, x: Tensor) -> None:
        """Start from new positions of the batch, and take out what is broken there."""
        before = self._now
        self._now = _State(x, before.velocities, *self._evaluate(x))
        self._weed(before, self.steps)

    # --- resuming --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly; for ``torch.save`` or ``numpy.savez``."""
        return {
            "steps": self.steps,
            "timestep": self.timestep,
            "friction": math.nan if self.friction is None else self.friction,
            "temperatures": self._temperatures.copy(),
            "numbers": np.concatenate(self.systems.numbers),
            "masses": np.concatenate(self.systems.masses),
            "sizes": np.array(self.systems.sizes),
            "seeds": np.array(self.systems.seeds),
            "lost": np.array([self.lost.get(r, -1) for r in range(len(self))]),
        } | {name: field.cpu().numpy() for name, field in self._whole()._asdict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            InputError: it is of other systems, or of another timestep, friction or seed.
        """
        mine = self.state_dict()
        if missing := mine.keys() - state.keys():
            raise InputError(f"this state has no {sorted(missing)[0]!r}; it is none of Replicas")
        for name in ("timestep", "friction", "sizes", "numbers", "masses", "seeds"):
            if not np.array_equal(mine[name], state[name], equal_nan=name == "friction"):
                raise InputError(
                    f"the {name} of this state differ from those given; to go on exactly, set up "
                    "the same systems with the same options"
                )
        device = self.model.device
        self.steps = int(state["steps"])
        self._temperatures = np.array(state["temperatures"], dtype=np.float64)
        lost = np.asarray(state["lost"])
        self.lost = {int(r): int(lost[r]) for r in (lost >= 0).nonzero()[0]}
        self._all = _State(*(to_device(np.array(state[f]), device) for f in _State._fields))
        self._pack((lost < 0).nonzero()[0])
