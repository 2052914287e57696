"""The guard: says, saves or stops when a simulation leaves what its model was trained on.

    guard = Guard("mine.safetensors", policy="stop")
    simulation.reporters.append(GuardReporter(guard))   # OpenMM, whatever force runs the model
    guard.attach(dynamics)                              # ASE
    replicas.observers.append(ReplicaGuard(guard))      # mlpot.md.replicas

Every `interval` steps the atoms are graded (`mlpot.deploy.grader`; 1 is the line that 99 % of
frames like the training set stay below). Molecules touch the line now and then and return, so a
flag is raised only if one atom is above the line in `checks` checks in a row, or any atom is above
`sure` at once. What follows belongs to the same excursion until `checks` checks in a row were calm.

Several models, with commas between, are a committee: the grade of an atom is then the larger of
that of the first model's features and that of their disagreement about its force
(`make_guard`, `mlpot.deploy.grader.make_grader`). Each of them costs a call, so a committee of n is
asked every n times as many steps.

A hydrogen leaves its bond in less than 10 fs. So between checks, every `look` steps, the lengths of
pairs are looked at, which takes no network; one that is above `sure` by itself makes it a check.

A model may lose a bond that it has never seen while a geometry is minimised, and the pieces may
look known. `mlpot md` flags that; a script that minimises asks for it with
`guard.watch(numbers).minimised(given, now)`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlpot.deploy.grader import has_statistics, make_grader, named_models
from mlpot.errors import InputError
from mlpot.graph import Graph
from mlpot.md.replicas import Replicas
from mlpot.md.watch import (
    CHECKS,
    INTERVAL,
    LOOK,
    POLICIES,
    SURE,
    ExtrapolationError,
    Flag,
    Guard,
    Watch,
)
from mlpot.units import NM_TO_ANGSTROM

__all__ = [
    "CHECKS",
    "INTERVAL",
    "LOOK",
    "POLICIES",
    "SURE",
    "ExtrapolationError",
    "Flag",
    "Guard",
    "GuardReporter",
    "ReplicaGuard",
    "Watch",
    "make_guard",
]


def make_guard(
    policy: str,
    model: str | Path,
    save_to: Path,
    report: Callable[[str], Any],
    guard_model: str | Path | None = None,
    guard_unit: float | None = None,
) -> Guard | None:
    """The guard that the settings of a run ask for; ``auto`` warns if the model's file holds the
    statistics that it takes, or a committee is given; ``off`` is none.

    Args:
        guard_model: what grades, if not ``model``; several with commas between are a committee.
        guard_unit: eV/Å of disagreement at grade 1; None takes what the members' files say.

    Raises:
        ModelFileError: a guard was asked for, and there are no statistics.
        InputError: members that do not fit together, or do not say how wrong they are.
    """
    source = model if guard_model is None else guard_model
    told = guard_unit is not None or len(named_models(source)) > 1
    if policy == "off":
        return None
    if policy == "auto" and not told and not has_statistics(source):
        report(
            "unguarded: the model's file does not say what it was trained on (exported ones never "
            "do). A .safetensors file that does can be named as the guard's model"
        )
        return None
    chosen: Any = "warn" if policy == "auto" else policy
    grader = make_grader(source, guard_unit)
    guard = Guard(grader, chosen, save_to=save_to, report=report)
    if known := grader.committee:
        report(
            f"the guard asks a committee of {len(known['members'])} every {guard.interval} steps: "
            f"grade 1 is a disagreement of {known['unit']:.3g} eV/Å about the force on an atom"
        )
    return guard


class GuardReporter:
    """The guard as an OpenMM reporter.

    Args:
        guard: or what `Guard` takes as a model; it then warns.
        atoms: indices of the atoms that the model describes, in a mixed system; None for all.
    """

    def __init__(self, guard: Guard | str | Path, atoms: ArrayLike | None = None):
        self.guard = guard if isinstance(guard, Guard) else Guard(guard)
        self._atoms = None if atoms is None else np.asarray(atoms, dtype=np.int64)
        self._watch: Watch | None = None
        self._periodic = False

    def describeNextReport(self, simulation: Any) -> tuple[int, bool, bool, bool, bool, bool]:
        """Steps to the next look, and what it needs: positions, not wrapped into the box."""
        every = self.guard.every
        return every - simulation.currentStep % every, True, False, False, False, False

    def report(self, simulation: Any, state: Any) -> None:
        """Called by OpenMM.

        Raises:
            ExtrapolationError: with the policy ``stop``.
        """
        chosen = slice(None) if self._atoms is None else self._atoms
        if self._watch is None:
            self._periodic = bool(simulation.system.usesPeriodicBoundaryConditions())
            atoms = simulation.topology.atoms()
            numbers = np.array([getattr(a.element, "atomic_number", 0) for a in atoms])
            self._watch = self.guard.watch(numbers[chosen], self._periodic)
        positions = np.asarray(state.getPositions(asNumpy=True)._value)[chosen] * NM_TO_ANGSTROM
        box = state.getPeriodicBoxVectors(asNumpy=True)._value * NM_TO_ANGSTROM
        time = state.getTime()._value
        self._watch.look(simulation.currentStep, time, positions, box if self._periodic else None)


class ReplicaGuard:
    """The guard as an observer of `mlpot.md.replicas.Replicas`. With the policy ``stop``, a replica
    that leaves is taken out and the others go on.

    Attributes:
        stopped: replica -> why it was taken out.
        latest: replica -> grades [N] at its last check.
        graded: replica -> step of that check.
    """

    def __init__(self, guard: Guard):
        self.guard, self.interval = guard, guard.every
        self.stopped: dict[int, str] = {}
        self.latest: dict[int, NDArray[np.float64]] = {}
        self.graded: dict[int, int] = {}
        self._watches: dict[int, Watch] = {}

    def __call__(self, replicas: Replicas) -> None:
        """Called by `Replicas` every `interval` steps."""
        living = replicas.alive.nonzero()[0]
        if not len(living):  # the last ones have just broken
            return
        graph = replicas.graph()
        if not self._watches:
            self._begin(replicas)
        self._remember(replicas, living)
        due = replicas.steps % self.guard.interval == 0
        chosen = living if due else self._torn(living, graph)
        if not len(chosen):
            return
        grades = self.guard.grader.grades(graph).cpu().numpy().astype(np.float64)
        ends = np.cumsum([replicas.systems.sizes[r] for r in living])[:-1]
        time = replicas.steps * replicas.timestep / 1000
        positions = replicas.positions
        found = dict(zip(living.tolist(), np.split(grades, ends), strict=True))
        for r in chosen.tolist():
            self.latest[r], self.graded[r] = found[r], replicas.steps
            try:
                self._watches[r].observe(found[r], replicas.steps, time, positions[r])
            except ExtrapolationError as error:
                self.stopped[r] = str(error)
        gone = [r for r in self.stopped if replicas.alive[r]]
        if gone:
            replicas.remove(gone)

    def broke(self, replica: int) -> int:
        """This replica has broken: `Watch.broke`."""
        watch = self._watches.get(replica)
        return 0 if watch is None else watch.broke()

    def _begin(self, replicas: Replicas) -> None:
        _check_cutoff(replicas, self.guard)
        numbers = enumerate(replicas.systems.numbers)
        self._watches = {r: self.guard.watch(z, system=r) for r, z in numbers}
        if self.guard.saved is not None:
            self.guard.saved.spread(len(replicas))

    def _remember(self, replicas: Replicas, living: NDArray[np.int64]) -> None:
        if self.guard.saved is not None:  # else it costs, and nobody asks
            positions, time = replicas.positions, replicas.steps * replicas.timestep / 1000
            for r in living.tolist():
                self._watches[r].remember(replicas.steps, time, positions[r])

    def _torn(self, living: NDArray[np.int64], graph: Graph) -> NDArray[np.int64]:
        """Replicas in which an excursion begins, with a length that is above ``sure``."""
        grades = self.guard.grader.length_grades(graph)
        worst = grades.new_zeros(graph.cell.shape[0]).scatter_reduce(0, graph.batch, grades, "amax")
        torn = living[(worst > self.guard.sure).cpu().numpy()]
        return np.array([r for r in torn.tolist() if not self._watches[r].outside], dtype=np.int64)


def _check_cutoff(replicas: Replicas, guard: Guard) -> None:
    """Both look at one graph."""
    if replicas.model.cutoff != guard.grader.cutoff:
        raise InputError(
            f"{guard.grader.info.name} has another cutoff ({guard.grader.cutoff:g} Å) than the "
            f"simulated model ({replicas.model.cutoff:g} Å), so it cannot grade replicas of it. "
            "Give the guard the model that runs, or its weights (guard_model=)"
        )
