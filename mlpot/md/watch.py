"""The rule of the guard: what is looked for in the grades of one system, and what is kept.

`mlpot.md.guard` says how the guard is used, and holds its hosts.
"""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray

from mlpot.deploy.engines import DeployedModel
from mlpot.deploy.grader import BoundGrader, FeatureGrader, Grader
from mlpot.errors import InputError, MLPotError
from mlpot.md.bonds import opened
from mlpot.md.flagged import FlaggedFrames

POLICIES = ("warn", "save", "stop")

#: steps between checks: one costs 2 to 4 steps of the compiled engine
INTERVAL = 100

#: steps between looks at lengths, which see first what breaks; divides INTERVAL
LOOK = 10

#: checks in a row in which one atom is above the line
CHECKS = 3

#: grade that needs no confirmation
SURE = 3.0


class ExtrapolationError(MLPotError):
    """The simulation has left what the model was trained on, and was to stop there."""


class Flag(NamedTuple):
    """Where an excursion began."""

    step: int
    time: float  # ps
    atom: int  # index, from 0
    symbol: str
    grade: float
    system: int | None = None  # of several replicas
    reason: str = ""  # a length between two atoms, if that alone is reason enough; a lost bond

    def describe(self, model: str) -> str:
        """As one clause."""
        whose = "" if self.system is None else f"replica {self.system}: "
        return (
            f"{whose}atom {self.atom} ({self.symbol}) left what {model} was trained on: "
            f"extrapolation grade {self.grade:.2f} at step {self.step:,} ({self.time:.6g} ps)"
            f"{self.reason and f', {self.reason}'}"
        )


class Guard:
    """What to look for, and what to do about it; one for any number of systems.

    Args:
        model: the .safetensors file (or zoo name) that holds the statistics, a model loaded from
            it, or a `Grader`.
        policy: ``warn`` reports; ``save`` also keeps the frames above the line; ``stop`` keeps
            them and raises `ExtrapolationError`.
        save_to: extended XYZ file for these frames, ready for `mlpot label`; added to if it exists.
        interval: steps between checks; None is 100 for a model, and as many times that as a
            committee has members, as each of them costs a call.
        look: steps between looks at lengths alone, if it divides the interval.
        line, checks, sure: the rule above, in grades.
        report: told, in a sentence, of every excursion.

    Attributes:
        every: steps between calls that a host makes of `Watch.look`.
        flags: of every excursion so far.
        largest: grade, step, system and atom of the highest grade seen.

    Raises:
        ModelFileError: the model holds no statistics, or is an exported file.
    """

    def __init__(
        self,
        model: str | Path | DeployedModel | Grader,
        policy: Literal["warn", "save", "stop"] = "warn",
        *,
        save_to: str | Path = "extrapolated.xyz",
        interval: int | None = None,
        look: int = LOOK,
        line: float = 1.0,
        checks: int = CHECKS,
        sure: float = SURE,
        report: Callable[[str], Any] = print,
    ):
        self.grader = model if isinstance(model, Grader) else FeatureGrader(model)
        if interval is None:
            committee = self.grader.committee
            interval = INTERVAL * (len(committee["members"]) if committee else 1)
        if policy not in POLICIES:
            raise InputError(f"guard must be one of {', '.join(POLICIES)}, got {policy!r}")
        if not (min(interval, look, checks) >= 1 and 0 < line <= sure):
            raise InputError(
                "the guard needs interval, look and checks of at least 1, and 0 < line <= sure; "
                f"got interval {interval}, look {look}, checks {checks}, line {line}, sure {sure}"
            )
        self.policy, self.interval, self.report = policy, interval, report
        self.every = look if self.grader.sees_lengths and interval % look == 0 else interval
        self.line, self.checks, self.sure = line, checks, sure
        self.saved = None if policy == "warn" else FlaggedFrames(Path(save_to))
        self.flags: list[Flag] = []
        self.largest: tuple[float, int, int | None, int] = (0.0, 0, None, 0)

    def watch(
        self,
        numbers: ArrayLike,
        pbc: bool | tuple[bool, ...] = False,
        system: int | None = None,
    ) -> "Watch":
        """Of one system; `Watch.look` and `Watch.check` take a frame of it."""
        return Watch(self, self.grader.bind(numbers, pbc), system)

    def attach(self, dynamics: Any) -> "Watch":
        """Watch an ASE dynamics; grades are left in ``atoms.calc.results`` as well."""
        observer = _AseObserver(self, dynamics)
        dynamics.attach(observer, interval=self.every)
        return observer.watch

    def told(self) -> dict[str, Any]:
        """What came of it, for a log."""
        grade, step, system, atom = self.largest
        return {
            "policy": self.policy,
            "interval": self.interval,
            "look": self.every,
            "rule": {"line": self.line, "checks": self.checks, "sure": self.sure},
            "committee": self.grader.committee,
            "largest": {
                "grade": grade if np.isfinite(grade) else None,
                "step": step,
                "system": system,
                "atom": atom,
            },
            "flags": [flag._asdict() | {"grade": _finite(flag.grade)} for flag in self.flags],
            "saved_frames": self.saved.count if self.saved else 0,
            "left_out_frames": self.saved.left_out if self.saved else 0,
        }


class Watch:
    """One system under a guard: counts, so that a single high grade is no alarm.

    Attributes:
        outside: whether an excursion is under way.
    """

    def __init__(self, guard: Guard, grade: BoundGrader, system: int | None):
        self.guard, self.system = guard, system
        self._grade = grade
        self._row = np.zeros(len(grade.numbers), dtype=np.int64)  # checks above the line
        self._calm = guard.checks  # checks since the last atom was above it
        self.outside = False
        # frames that a flag would save; frames looked at last, which a break would save
        self._waiting: deque[tuple[Any, ...]] = deque(maxlen=guard.checks)
        self._recent: deque[tuple[Any, ...]] = deque(maxlen=guard.checks)
        self._kept = -1  # step of the last frame that was saved

    def look(
        self, step: int, time: float, positions: ArrayLike, cell: ArrayLike | None = None
    ) -> NDArray[np.float64] | None:
        """`check`, at every `interval`-th step; in between only where an excursion begins, with a
        length that is above ``sure``, and else None."""
        guard = self.guard
        self.remember(step, time, positions, cell)
        if step % guard.interval == 0:
            return self.check(step, time, positions, cell)
        if self.outside or self._grade.length_grades(positions, cell).max() <= guard.sure:
            return None
        return self.check(step, time, positions, cell)

    def remember(
        self, step: int, time: float, positions: ArrayLike, cell: ArrayLike | None = None
    ) -> None:
        """Hold a frame in memory for `broke`, if frames are kept at all and it is finite."""
        if self.guard.saved is not None and np.isfinite(np.asarray(positions)).all():
            copy = None if cell is None else np.array(cell)
            self._recent.append((step, time, np.array(positions), copy))

    def broke(self) -> int:
        """The run has broken: save the last frames that were looked at, with or without a flag,
        as far as the policy keeps frames and they are not saved yet. How many there are."""
        saved = self.guard.saved
        if saved is None:
            return 0
        before = saved.count
        self._save()
        why = "last before the run broke"
        for step, time, positions, cell in self._recent:
            if step > self._kept:
                self._write(step, time, positions, self._grade(positions, cell), cell, why)
        self._recent.clear()
        return saved.count - before

    def check(
        self, step: int, time: float, positions: ArrayLike, cell: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Grades [N] of a frame, acted upon.

        Args:
            time: ps.
            positions: [N, 3] Å.
            cell: [3, 3] Å.

        Raises:
            ExtrapolationError: with the policy ``stop``, where an excursion begins.
        """
        grades = self._grade(positions, cell)
        self.observe(grades, step, time, positions, cell)
        return grades

    def minimised(
        self,
        given: NDArray[np.float64],
        now: NDArray[np.float64],
        cell: ArrayLike | None = None,
    ) -> None:
        """A geometry was minimised before the first step; [N, 3] Å as given and now.

        On the way down a model may lose a bond that it has not seen, and the fragments may look
        known. So a bond that opened, with an atom that was above the line as given, is flagged,
        and the frame is the one as given. A bad contact or a short bond that was mended is not.

        Raises:
            ExtrapolationError: with the policy ``stop``.
        """
        lost, guard = opened(self._grade.numbers, given, now), self.guard
        if not lost:
            return
        grades = self._grade(given, cell)
        atom, bond = max(((i, b) for b in lost for i in b.atoms), key=lambda p: grades[p[0]])
        if not grades[atom] > guard.line:
            return
        grade, symbol = float(grades[atom]), chemical_symbols[self._grade.numbers[atom]]
        guard.largest = max(guard.largest, (grade, 0, self.system, atom), key=_by)
        guard.flags.append(Flag(0, 0.0, atom, symbol, grade, self.system, f"bond {bond}"))
        if guard.saved is not None:
            box, kept = None if cell is None else np.array(cell), self._kept
            self._write(0, 0.0, np.array(given), grades, box)
            self._kept = kept  # that was another frame than step 0
        self._act(guard.flags[-1])

    def observe(
        self,
        grades: NDArray[np.float64],
        step: int,
        time: float,
        positions: ArrayLike,
        cell: ArrayLike | None = None,
    ) -> None:
        """`check`, with grades [N] that are known already."""
        guard = self.guard
        atom = int(grades.argmax())
        guard.largest = max(guard.largest, (float(grades[atom]), step, self.system, atom), key=_by)
        above = grades > guard.line
        self._row = np.where(above, self._row + 1, 0)
        if not above.any():
            self._calm += 1
            self._waiting.clear()
            self.outside = self.outside and self._calm < guard.checks
            return
        self._calm = 0
        box = None if cell is None else np.array(cell)  # ASE's is the one that changes
        self._waiting.append((step, time, np.array(positions), grades, box))
        patient = self._row >= guard.checks
        begun = not self.outside and (bool(patient.any()) or grades[atom] > guard.sure)
        if begun:
            self.outside = True
            if grades[atom] <= guard.sure:
                atom = int(np.where(patient, grades, -1.0).argmax())
            symbol = chemical_symbols[self._grade.numbers[atom]]
            told = self.system, self._reason(atom, positions, cell)
            guard.flags.append(Flag(step, time, atom, symbol, float(grades[atom]), *told))
        if self.outside:
            self._save()
        if begun:
            self._act(guard.flags[-1])

    def _reason(self, atom: int, positions: ArrayLike, cell: ArrayLike | None) -> str:
        """The length that is reason enough, if there is one."""
        pair = self._grade.torn(positions, cell, atom)
        if pair is None:
            return ""
        ends = (f"{chemical_symbols[self._grade.numbers[i]]} {i}" for i in (atom, pair.other))
        return f"{' - '.join(ends)} at {pair.length:.2f} Å, hardly ever seen in training"

    def _save(self) -> None:
        """Write the frames above the line, those that led there included."""
        if self.guard.saved is not None:
            for frame in self._waiting:
                self._write(*frame)
        self._waiting.clear()

    def _write(
        self,
        step: int,
        time: float,
        positions: NDArray[np.float64],
        grades: NDArray[np.float64],
        cell: ArrayLike | None,
        why: str = "",  # of the last ones before a break
    ) -> None:
        saved = self.guard.saved
        assert saved is not None
        told: dict[str, Any] = {"step": step, "time_ps": time}
        told |= {"model": self.guard.grader.info.name} | ({"why": why} if why else {})
        told |= {} if self.system is None else {"replica": self.system}
        pbc, last = self._grade.pbc, bool(why)
        note = saved.write(self._grade.numbers, positions, grades, cell, pbc, told, last)
        self._kept = step
        if note:
            self.guard.report(note)

    def _act(self, flag: Flag) -> None:
        guard = self.guard
        sentence = flag.describe(guard.grader.info.name)
        if guard.saved is not None:
            sentence += f"; frames are in {guard.saved.path}: label them and fine-tune"
        if guard.policy == "stop":
            raise ExtrapolationError(f"stopped: {sentence}, or let it only warn (--guard warn)")
        guard.report(sentence)


class _AseObserver:
    def __init__(self, guard: Guard, dynamics: Any):
        self._dynamics = dynamics
        atoms = dynamics.atoms
        self.watch = guard.watch(atoms.numbers, tuple(bool(p) for p in atoms.pbc))

    def __call__(self) -> None:
        from ase import units

        atoms, dynamics = self._dynamics.atoms, self._dynamics
        time = dynamics.nsteps * getattr(dynamics, "dt", 0.0) / (1000 * units.fs)
        cell = atoms.cell.array if any(atoms.pbc) else None
        grades = self.watch.look(dynamics.nsteps, time, atoms.positions, cell)
        if grades is not None and atoms.calc is not None:
            atoms.calc.results["extrapolation_grade"] = grades


def _by(entry: tuple[float, int, int | None, int]) -> float:
    return entry[0]


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if np.isfinite(value) else None
