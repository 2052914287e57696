"""When a simulation has broken: rules on positions and temperatures, and nothing else.

Bonds: MDsim (Fu et al., "Forces are not enough", TMLR 2023): unstable at the first frame where a
bond departs from its reference mean by more than 0.5 Å. Explosion and lost hydrogens: mlipaudit
(`mlipaudit.benchmarks.stability`). F frames, N atoms, B bonds.
"""

from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlpot.md.bonds import OPENED
from mlpot.md.bonds import find_bonds as find_bonds

#: Å, from its reference mean; a bond further off is broken, or crushed
BOND_DEPARTURE = OPENED

#: Å; a hydrogen further from every heavy atom, and that to the last frame, is lost
HYDROGEN = 2.5

#: K above the thermostat, and factor between two frames, of an explosion
TOO_HOT, JUMP = 10_000.0, 100.0

#: how a run ended that was taken out before its time: NaN or too hot, or in pieces
INTEGRATOR, PIECES = "integrator", "pieces"

#: the same, where it says nothing of the potential: its calculator raised an exception, or there
#: was no start as the scenario asks for
CALCULATOR, START = "calculator", "start"
FAILURES = (CALCULATOR, START)

Reals = NDArray[np.floating]
Pairs = NDArray[np.int64]


class Verdict(NamedTuple):
    """What came of a run. Frames count from 0; times are None where a rule was not broken.

    A run that broke no rule and was ended by a failure has not broken, and the failure is its
    cause.
    """

    stable_ps: float  # until the first rule was broken, or the end
    broke: bool
    cause: str  # "", "bond C3-H9", "hydrogen H9", "temperature", "integrator", or a failure
    bond_ps: float | None
    hydrogen_ps: float | None
    explosion_ps: float | None
    end_ps: float  # of what was simulated, whatever the rules say
    worst_frame: int  # where a bond is furthest from its reference, up to the break
    worst_bond: str
    worst_departure: float  # Å


def bond_lengths(positions: Reals, bonds: Pairs) -> NDArray[np.float64]:
    """[F, B] Å of positions [F, N, 3] Å."""
    arms = positions[:, bonds[:, 0]].astype(np.float64) - positions[:, bonds[:, 1]]
    return np.linalg.norm(arms, axis=2)


def first_broken(lengths: Reals, reference: Reals) -> int | None:
    """First frame with a bond more than 0.5 Å off its reference ([B] or [F, B] Å), or NaN."""
    whole = np.all(np.abs(lengths - reference) <= BOND_DEPARTURE, axis=1)
    return _first(~np.asarray(whole))


def first_lost_hydrogen(
    numbers: NDArray[np.int64], bonds: Pairs, positions: Reals
) -> tuple[int, int] | None:
    """(frame, hydrogen) from which on a hydrogen is more than 2.5 Å from every heavy atom.

    One that comes back before the last frame was not lost, and one that another atom has taken
    was not either. ``bonds`` [B, 2] tell hydrogens that never had a heavy atom: those of H2.
    """
    heavy = np.flatnonzero(numbers > 1)
    pairs = bonds[(numbers[bonds] == 1).all(axis=1)]
    found = []
    for hydrogen in np.setdiff1d(np.flatnonzero(numbers == 1), pairs) if len(heavy) else ():
        # the last frame says of nearly all that they are where they belong
        if len(positions) and not _near(positions[-1:], hydrogen, heavy)[0]:
            near = np.flatnonzero(_near(positions, hydrogen, heavy))
            found.append((0 if not len(near) else int(near[-1]) + 1, int(hydrogen)))
    return min(found, default=None)


def _near(positions: Reals, hydrogen: int, heavy: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[F], whether it is within reach of a heavy atom; not where it is NaN."""
    arms = positions[:, heavy].astype(np.float64) - positions[:, [hydrogen]]
    return (np.linalg.norm(arms, axis=2) <= HYDROGEN).any(axis=1)


def first_explosion(temperatures: Reals, thermostat: Reals | float) -> int | None:
    """First frame hotter than its thermostat + 10,000 K, or 100 times the frame before.

    Args:
        temperatures: [F] K, of the motion.
        thermostat: K, one or [F].
    """
    t = np.asarray(temperatures, dtype=np.float64)
    hot = ~(t <= np.asarray(thermostat) + TOO_HOT)
    # a start at rest is no explosion: 1 K is the least that counts as a temperature
    hot[1:] |= ~(t[1:] <= JUMP * np.maximum(t[:-1], 1.0))
    return _first(hot)


def judge(
    numbers: NDArray[np.int64],
    bonds: Pairs,
    reference: Reals,
    positions: Reals,
    temperatures: Reals,
    thermostat: Reals | float,
    times: Reals,
    end: float,
    lost: bool = False,
    settled: float = 0.0,
    ending: str = INTEGRATOR,
    last: Reals | None = None,
) -> Verdict:
    """All rules on one run.

    Args:
        numbers: [N] atomic numbers.
        bonds: [B, 2], those that are judged.
        reference: [B] Å, their mean lengths.
        positions: [F, N, 3] Å.
        temperatures: [F] K, of the motion.
        thermostat: K, one or [F].
        times: [F] ps.
        end: ps, of the last sound step.
        lost: the run was taken out after that step.
        settled: ps, from which on bonds are judged: after a distorted start.
        ending: why it was taken out: ``integrator``, ``pieces``, or one of `FAILURES`.
        last: [N, 3] Å of the last sound step. With a bond broken there, a calculator that fails
            afterwards is no excuse.
    """
    lengths = bond_lengths(positions, bonds)
    torn = _torn(lengths, reference, times, settled)
    if torn is None and lost and ending == CALCULATOR and last is not None:
        torn = _torn(bond_lengths(last[None], bonds), reference, np.array([end]), settled)
    away = first_lost_hydrogen(numbers, bonds, positions)
    hot = first_explosion(temperatures, thermostat)
    at = {
        "bond": None if torn is None else torn[0],
        "hydrogen": None if away is None else float(times[away[0]]),
        "temperature": None if hot is None else float(times[hot]),
        ending: end if lost and ending not in FAILURES else None,
    }
    broke = {rule: time for rule, time in at.items() if time is not None}
    cause = min(broke, key=lambda rule: broke[rule], default=ending if lost else "")
    stable = broke.get(cause, end)
    if cause == "bond" and torn is not None:
        cause = f"bond {bond_name(numbers, bonds[int(np.argmax(torn[1]))])}"
    elif cause == "hydrogen" and away is not None:
        cause = f"hydrogen H{away[1]}"
    heat = [broke[rule] for rule in ("temperature", INTEGRATOR) if rule in broke]
    worst = _worst(numbers, bonds, np.abs(lengths - reference), times, stable, settled)
    told = (at["bond"], at["hydrogen"], min(heat, default=None), end)
    return Verdict(stable, bool(broke), cause, *told, *worst)


def _torn(
    lengths: Reals, reference: Reals, times: Reals, settled: float
) -> tuple[float, Reals] | None:
    """(ps, departures [B] Å) of the first frame in which a bond is broken."""
    compared = np.where(times < settled, lengths.T, reference[:, None]).T
    frame = first_broken(lengths, compared)
    return None if frame is None else (float(times[frame]), np.abs(lengths[frame] - reference))


def _worst(
    numbers: NDArray[np.int64],
    bonds: Pairs,
    departure: Reals,
    times: Reals,
    stable: float,
    settled: float,
) -> tuple[int, str, float]:
    """Frame, bond and Å of the furthest departure [F, B], up to and with the frame of a break."""
    upto = departure[: int(np.searchsorted(times, stable, side="right"))]
    if not upto.size:
        return 0, bond_name(numbers, bonds[0]) if len(bonds) else "", 0.0
    judged = times[: len(upto), None] >= settled
    counted = np.where(judged, upto, -1.0) if judged.any() else upto
    frame, bond = np.unravel_index(int(np.argmax(counted)), upto.shape)
    return int(frame), bond_name(numbers, bonds[bond]), float(departure[frame, bond])


def bond_name(numbers: NDArray[np.int64], bond: Pairs) -> str:
    """C3-H9: elements, and indices of atoms from 0."""
    return "-".join(f"{chemical_symbols[numbers[i]]}{i}" for i in bond)


def _first(flags: NDArray[np.bool_]) -> int | None:
    return int(flags.argmax()) if flags.any() else None
