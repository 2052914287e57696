"""Time steps in turns: every round times every candidate once, so a change of the machine's
speed meets all of them. Ratios are taken within a round, then the median over the rounds."""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ase import Atoms

from benchmarks.speed.candidates import Candidate, NotInstalled, NotSupported, Step

LARGE, FEW = 1000, 3  # atoms, rounds; large systems are timed with all threads only
WARM_UP = 2  # calls before a block: thread pools and caches are the other candidates' until then


@dataclass(frozen=True)
class Effort:
    """How long to look. One per ``--mode``.

    Attributes:
        rounds: how often every candidate is timed; at most FEW for large systems.
        block: seconds of one candidate in one round; at least one call.
        slowest: seconds of a call above which a candidate is called once and left out.
        systems: names, in order.
        slow_setup: also candidates that compile for more than a minute.
    """

    rounds: int
    block: float
    slowest: float
    systems: tuple[str, ...]
    slow_setup: bool = True


@dataclass
class Row:
    """One candidate on one system with one thread count.

    ``status`` is timed, absent (not installed), unsupported, slow (timed once) or failed.
    """

    name: str
    route: str
    threads: int
    status: str = "timed"
    reason: str = ""
    setup_s: float = 0.0  # loading, compiling and first call
    ms: list[float] = field(default_factory=list)  # one per round

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    def to_json(self) -> dict[str, Any]:
        extra = {}
        if self.ms:
            extra = {"median_ms": self.median, "iqr_ms": iqr(self.ms)}
        return {**asdict(self), "ms": [round(t, 5) for t in self.ms], **extra}


def row_of(stored: dict[str, Any]) -> Row:
    """A row read back from JSON."""
    return Row(**{k: v for k, v in stored.items() if k in Row.__dataclass_fields__})


def iqr(values: Sequence[float]) -> float:
    """Distance between the quartiles; 0 for one value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def ratio(ours: Row, theirs: Row) -> float:
    """Median over the rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours.ms, theirs.ms, strict=True))


def time_all(
    candidates: Sequence[Candidate],
    atoms: Atoms,
    threads: int,
    effort: Effort,
    report: Callable[[str], object] = print,
) -> list[Row]:
    """Time every candidate on one system, with one thread and with `threads`.

    Args:
        report: called with a line about every candidate that is not timed.
    """
    rows, steps = [], []
    for candidate in candidates:
        if candidate.slow_setup and not effort.slow_setup:
            continue
        only_all = candidate.fixed_threads or len(atoms) >= LARGE
        counts = [threads] if only_all else sorted({1, threads})
        for count in counts:
            row = Row(candidate.name, candidate.route, count)
            step = _prepare(candidate, atoms, row, effort.slowest)
            rows.append(row)
            if step is not None:
                steps.append((row, step))
            else:
                report(f"  {row.name} [{row.route}, {count}]: {row.status}: {row.reason}")
    rounds = min(FEW, effort.rounds) if len(atoms) >= LARGE else effort.rounds
    alternate(steps, rounds, effort.block)
    return rows


def alternate(steps: Sequence[tuple[Row, Step]], rounds: int, block: float) -> None:
    """Fill ``ms`` of every row: in every round each step once, in a new order.

    A step that fails half way (a trajectory that breaks) becomes a failed row.
    """
    rng = random.Random(0)
    for _ in range(rounds):
        order = list(steps)
        rng.shuffle(order)
        gc.collect()
        for row, step in order:
            if row.status == "timed":
                guarded(row, partial(_block, row, step, block))


def _prepare(candidate: Candidate, atoms: Atoms, row: Row, slowest: float) -> Step | None:
    """A step that has been called once; None if it cannot be timed, and the row says why."""
    steps: list[Step] = []

    def first() -> None:
        candidate.check(atoms)
        set_threads(row.threads)
        step = candidate.prepare(atoms.copy(), row.threads)
        step()
        steps.append(step)

    started = time.perf_counter()
    if not guarded(row, first):
        return None
    row.setup_s = round(time.perf_counter() - started, 3)
    took = math.inf
    for _ in range(WARM_UP):  # a machine at work may stop one call, hardly two
        started = time.perf_counter()
        if not guarded(row, steps[0]):
            return None
        took = min(took, time.perf_counter() - started)
        if took <= slowest:
            break
    else:
        row.status, row.reason = "slow", f"{took:.1f} s a call, timed once"
        row.ms = [1e3 * took]
        return None
    return steps[0]


def guarded(row: Row, action: Callable[[], object]) -> bool:
    """Run; turn what a peer raises into a row that says so. One of them failing is a result."""
    try:
        action()
    except NotInstalled as error:
        row.status, row.reason = "absent", str(error)
    except NotSupported as error:
        row.status, row.reason = "unsupported", str(error)
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        row.status, row.reason = "failed", f"{type(error).__name__}: {first_line}"[:200]
        row.ms = []
    return row.status == "timed"


def _block(row: Row, step: Step, seconds: float) -> None:
    """Add the milliseconds of a call, averaged over a block."""
    set_threads(row.threads)
    reset = getattr(step, "reset", None)
    if reset is not None:
        reset()
    started = time.perf_counter()
    for _ in range(WARM_UP):
        step()
        if time.perf_counter() - started > seconds:  # one long call is warm enough
            break
    calls, started = 0, time.perf_counter()
    while True:
        step()
        calls += 1
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            row.ms.append(1e3 * elapsed / calls)
            return


def set_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)
