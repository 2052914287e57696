"""When a simulation has broken: rules on positions and temperatures, and nothing else.

Bonds: MDsim (Fu et al., "Forces are not enough", TMLR 2023): unstable at the first frame where a
bond departs from its reference mean by more than 0.5 Å. Explosion and lost hydrogens: mlipaudit.
F frames, N atoms, B bonds.
"""

from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

#: Å, from its reference mean; a bond further off is broken, or crushed
BOND_DEPARTURE = 0.5

#: Å; a hydrogen further from its atom, and that to the last frame, is lost
HYDROGEN = 2.5

#: K above the thermostat, and factor between two frames, of an explosion
TOO_HOT, JUMP = 10_000.0, 100.0

#: in sums of covalent radii; closer atoms of the first frame are bonded
BONDED = 1.25

Reals = NDArray[np.floating]
Pairs = NDArray[np.int64]


class Verdict(NamedTuple):
    """What came of a run. Frames count from 0; times are None where a rule was not broken."""

    stable_ps: float  # until the first rule was broken, or the end
    broke: bool
    cause: str  # "", "bond C3-H9", "hydrogen H9", "temperature", "integrator"
    bond_ps: float | None
    hydrogen_ps: float | None
    explosion_ps: float | None
    worst_frame: int  # where a bond is furthest from its reference, up to the break
    worst_bond: str
    worst_departure: float  # Å


def find_bonds(numbers: NDArray[np.int64], positions: Reals) -> Pairs:
    """[B, 2] pairs (i < j) closer than 1.25 sums of their covalent radii, positions [N, 3] Å."""
    radii = covalent_radii[numbers]
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    near = np.triu(distance < BONDED * (radii[:, None] + radii[None]), 1)
    return np.argwhere(near)


def bond_lengths(positions: Reals, bonds: Pairs) -> NDArray[np.float64]:
    """[F, B] Å of positions [F, N, 3] Å."""
    arms = positions[:, bonds[:, 0]].astype(np.float64) - positions[:, bonds[:, 1]]
    return np.linalg.norm(arms, axis=2)


def first_broken(lengths: Reals, reference: Reals) -> int | None:
    """First frame with a bond more than 0.5 Å off its reference ([B] or [F, B] Å), or NaN."""
    whole = np.all(np.abs(lengths - reference) <= BOND_DEPARTURE, axis=1)
    return _first(~np.asarray(whole))


def first_lost_hydrogen(
    numbers: NDArray[np.int64], bonds: Pairs, lengths: Reals
) -> tuple[int, int] | None:
    """(frame, hydrogen) from which on a hydrogen stays away from the atom it was bonded to.

    One that comes back before the last frame was not lost.
    """
    found = []
    for b, pair in enumerate(bonds):
        hydrogens = pair[numbers[pair] == 1]
        near = np.flatnonzero(lengths[:, b] <= HYDROGEN)
        since = 0 if not len(near) else int(near[-1]) + 1
        if len(hydrogens) and since < len(lengths):
            found.append((since, int(hydrogens[0])))
    return min(found, default=None)


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
) -> Verdict:
    """All rules on one run.

    Args:
        numbers: [N] atomic numbers.
        bonds: [B, 2].
        reference: [B] Å, mean lengths at 300 K.
        positions: [F, N, 3] Å.
        temperatures: [F] K, of the motion.
        thermostat: K, one or [F].
        times: [F] ps.
        end: ps, of the last sound step.
        lost: the integrator took the system out after that step.
        settled: ps, from which on bonds are judged: after a distorted start.
    """
    lengths = bond_lengths(positions, bonds)
    broken = first_broken(lengths, np.where(times < settled, lengths.T, reference[:, None]).T)
    away = first_lost_hydrogen(numbers, bonds, lengths)
    hot = first_explosion(temperatures, thermostat)
    at = {
        "bond": None if broken is None else float(times[broken]),
        "hydrogen": None if away is None else float(times[away[0]]),
        "temperature": None if hot is None else float(times[hot]),
        "integrator": end if lost else None,
    }
    broke = {rule: time for rule, time in at.items() if time is not None}
    cause = min(broke, key=lambda rule: broke[rule], default="")
    stable = broke[cause] if cause else end
    departure = np.abs(lengths - reference)
    frame, bond = _worst(departure, times, stable, settled)
    name = bond_name(numbers, bonds[bond]) if len(bonds) else ""
    if cause == "bond" and broken is not None:
        cause = f"bond {bond_name(numbers, bonds[int(np.argmax(departure[broken]))])}"
    elif cause == "hydrogen" and away is not None:
        cause = f"hydrogen H{away[1]}"
    heat = [broke[rule] for rule in ("temperature", "integrator") if rule in broke]
    return Verdict(
        stable_ps=stable,
        broke=bool(broke),
        cause=cause,
        bond_ps=at["bond"],
        hydrogen_ps=at["hydrogen"],
        explosion_ps=min(heat, default=None),
        worst_frame=frame,
        worst_bond=name,
        worst_departure=float(departure[frame, bond]) if departure.size else 0.0,
    )


def _worst(departure: Reals, times: Reals, stable: float, settled: float) -> tuple[int, int]:
    """(frame, bond) furthest off, [F, B] Å, up to and with the frame of a break."""
    upto = departure[: int(np.searchsorted(times, stable, side="right"))]
    judged = times[: len(upto), None] >= settled
    upto = np.where(judged, upto, -1.0) if judged.any() else upto
    frame, bond = np.unravel_index(int(np.argmax(upto)), upto.shape) if upto.size else (0, 0)
    return int(frame), int(bond)


def bond_name(numbers: NDArray[np.int64], bond: Pairs) -> str:
    """C3-H9: elements, and indices of atoms from 0."""
    return "-".join(f"{chemical_symbols[numbers[i]]}{i}" for i in bond)


def _first(flags: NDArray[np.bool_]) -> int | None:
    return int(flags.argmax()) if flags.any() else None
