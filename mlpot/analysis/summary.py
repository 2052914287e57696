"""From records and trajectories to numbers: cheap, and the same every time it is done."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpot.analysis import criteria
from mlpot.analysis.criteria import Verdict, bond_lengths, first_broken, judge
from mlpot.analysis.elsewhere import Elsewhere
from mlpot.analysis.intervals import (
    Interval,
    bootstrap_mean,
    fraction,
    slope,
    survival,
    t_mean,
)
from mlpot.analysis.records import Folder, Json, Suite, failures_of, read_trajectory, write_json
from mlpot.analysis.structure import agreement, distributions
from mlpot.errors import DataError

#: K, at which mean bond lengths are those that bonds are compared with
ROOM = 300.0

#: ps that a distorted start has to get its bonds right
SETTLING = 0.1

#: frames that such a mean needs
ENOUGH = 10

#: what makes runs one row of a table
_GROUP = (
    "scenario",
    "temperature",
    "end_temperature",
    "timestep",
    "distortion",
    "picoseconds",
    "ensemble",
)


@dataclass(frozen=True, eq=False)
class _Judged:
    """A run with its frames and what came of it."""

    record: Json
    positions: NDArray[np.float32]  # [F, N, 3] Å
    verdict: Verdict

    @property
    def sound(self) -> slice:
        """Frames before the first rule was broken."""
        frames = len(self.positions)
        if self.verdict.broke:
            times = _times(self.record, frames)
            frames = int(np.searchsorted(times, self.verdict.stable_ps))
        return slice(0, frames)


def analyze(out: str | Path, elsewhere: Elsewhere | None = None) -> Json:
    """Apply the rules to all runs, and write ``summary.json``.

    Args:
        out: folder of the suite.
        elsewhere: runs of the same suite that were done on another machine. Those that the suite
            does not ask for are passed over; all runs here are judged by the same lengths.

    Its parts: ``model``, ``mode``, ``machine``, ``rules`` (their thresholds), ``skipped``,
    ``failed``, ``missing`` (planned runs without a record), ``core_hours``; ``groups`` (one for
    each scenario, temperature, time step and distortion: share of sound runs and stable
    picoseconds with intervals, Kaplan-Meier curve, causes, and one row a molecule), ``ramp``
    (thermostat at which runs broke), ``drift`` (meV/atom/ps), ``structure``, ``accuracy``,
    ``refusals``, ``runs`` (one line each, with its worst frame), and ``lengths`` (Å, that bonds of
    a molecule were compared with). Intervals are [value, low, high], 95 %; None where there is
    none.

    Raises:
        DataError: the folder holds no suite, a trajectory is missing, or what was done elsewhere
            was judged by other rules.
    """
    folder = Folder(out)
    suite = folder.suite()
    latest = {record["key"]: record for record in folder.records()}
    records = [latest[key] for key in suite.runs if key in latest]
    elsewhere = elsewhere or Elsewhere()
    elsewhere.check(_rules())
    judged, lengths = _judge(folder, suite, records, elsewhere.lengths)
    lines = [_line(one) for one in judged] + elsewhere.asked(set(suite.runs) - set(latest))
    groups = _grouped(lines)
    others = [latest[key] for key in suite.others if key in latest]
    summary = {
        "version": suite.version,
        "model": suite.model,
        "mode": suite.mode,
        "machine": suite.machine,
        "rules": _rules(),
        "skipped": suite.skipped,
        "failed": failures_of(folder.records_file),
        "missing": len(suite.runs) - len(lines),
        "core_hours": _core_hours(lines),
        "groups": [_group(runs) for runs in groups.values()],
        "ramp": [_ramp(r) for r in groups.values() if r[0]["end_temperature"] is not None],
        "drift": [_drift(r) for r in _of_constant_energy(judged)],
        "structure": _structure(folder, suite, judged),
        "accuracy": [_without(r, "energies", "forces") for r in others if r["kind"] == "accuracy"],
        "refusals": [r for r in others if r["kind"] == "refusal"],
        "runs": lines,
        "lengths": {name: mean.tolist() for name, mean in lengths.items()},
    }
    summary = _json(summary)
    write_json(folder.summary_file, summary)
    return summary


def _rules() -> Json:
    return {
        "bond_departure_A": criteria.BOND_DEPARTURE,
        "bonded_covalent_radii": criteria.BONDED,
        "reference_K": ROOM,
        "settling_of_distorted_ps": SETTLING,
        "lost_hydrogen_A": criteria.HYDROGEN,
        "explosion_K": criteria.TOO_HOT,
        "explosion_jump": criteria.JUMP,
    }


# --- one run -------------------------------------------------------------------------------------


def _judge(
    folder: Folder, suite: Suite, records: Sequence[Json], known: Mapping[str, Sequence[float]]
) -> tuple[list[_Judged], dict[str, NDArray[np.float64]]]:
    """Runs with their verdicts, and the lengths that bonds were compared with: ``known`` ones
    where there are."""
    found, lengths = [], {}
    for name, molecule in suite.molecules.items():
        mine = [r for r in records if r["molecule"] == name]
        frames = [_frames(folder, record) for record in mine]
        numbers = np.array(molecule["numbers"])
        bonds = np.array(molecule["bonds"], dtype=np.int64).reshape(-1, 2)
        given = bond_lengths(np.array(molecule["positions"])[None], bonds)[0]
        reference = (
            np.array(known[name])
            if name in known
            else _reference_lengths(mine, frames, bonds, given)
        )
        lengths[name] = reference
        for record, positions in zip(mine, frames, strict=True):
            verdict = judge(
                numbers,
                bonds,
                reference,
                positions,
                np.array(record["temperatures"], dtype=np.float64),
                np.array(record["thermostat"]),
                _times(record, len(positions)),
                end=record["steps"] * record["timestep"] / 1000,
                lost=record["lost"],
                settled=SETTLING if record["distortion"] else 0.0,
            )
            found.append(_Judged(record, positions, verdict))
    return found, lengths


def _frames(folder: Folder, record: Json) -> NDArray[np.float32]:
    path = folder.trajectory(record["id"])
    if not path.is_file():
        raise DataError(
            f"{path} is missing, and {folder.records_file.name} has a record of it. Put it back, "
            "or run the suite again in another folder"
        )
    return read_trajectory(path)


def _times(record: Json, frames: int) -> NDArray[np.float64]:
    return np.arange(frames) * record["interval"] / 1000


def _reference_lengths(
    records: Sequence[Json],
    frames: Sequence[NDArray[np.float32]],
    bonds: NDArray[np.int64],
    given: NDArray[np.float64],
) -> NDArray[np.float64]:
    """[B] Å: mean over the model's own runs at 300 K while they are whole; without such runs, the
    geometry as it was given. (Two means differ by hundredths of an Å, the threshold is 0.5.)"""
    whole = []
    for record, positions in zip(records, frames, strict=True):
        still = record["temperature"] == ROOM and record["end_temperature"] is None
        if still and not record["distortion"] and record["ensemble"] == "nvt":
            lengths = bond_lengths(positions, bonds)
            whole.append(lengths[: first_broken(lengths, given)])
    together = np.concatenate([np.empty((0, len(bonds))), *whole])
    return together.mean(axis=0) if len(together) >= ENOUGH else given


def _line(one: _Judged) -> Json:
    keep = ("id", "key", "molecule", "set", "seed", *_GROUP, "trajectory", "reason", "cpu_seconds")
    return {**{name: one.record[name] for name in keep}, **one.verdict._asdict()}


# --- many runs -----------------------------------------------------------------------------------


def _grouped(lines: Sequence[Json]) -> dict[tuple, list[Json]]:
    groups: dict[tuple, list[Json]] = defaultdict(list)
    for line in lines:
        groups[tuple(line[name] for name in _GROUP)].append(line)
    return groups


def _group(runs: Sequence[Json]) -> Json:
    by_molecule: dict[str, list[Json]] = defaultdict(list)
    for one in runs:
        by_molecule[one["molecule"]].append(one)
    rows = {name: _row([members]) for name, members in by_molecule.items()}
    return {
        **{name: runs[0][name] for name in _GROUP},
        **_row(list(by_molecule.values())),
        "survival": survival([one["stable_ps"] for one in runs], [one["broke"] for one in runs]),
        "causes": dict(Counter(one["cause"].split()[0] for one in runs if one["broke"])),
        "worst": _worst(runs),
        "cpu_seconds": sum(one["cpu_seconds"] for one in runs),
        "molecules": rows,
    }


def _worst(runs: Sequence[Json]) -> float:
    """Å; infinite where one had no bounds, for which a line from JSON has None."""
    found = [np.inf if one["worst_departure"] is None else one["worst_departure"] for one in runs]
    return float(max(found, default=0.0))


def _row(by_molecule: Sequence[Sequence[Json]]) -> Json:
    runs = [one for members in by_molecule for one in members]
    whole = sum(not one["broke"] for one in runs)
    return {
        "runs": len(runs),
        "sound": whole,
        "fraction": fraction(whole, len(runs)),
        "stable_ps": bootstrap_mean([[o["stable_ps"] for o in m] for m in by_molecule]),
    }


def _ramp(runs: Sequence[Json]) -> Json:
    """Thermostat (K) at which runs broke; those that did not are left out, and counted."""
    broke = {}
    for one in runs:
        if one["broke"]:
            way = min(1.0, one["stable_ps"] / one["picoseconds"])
            kelvin = one["temperature"] + way * (one["end_temperature"] - one["temperature"])
            broke[f"{one['molecule']}, seed {one['seed']}"] = kelvin
    return {
        "from": runs[0]["temperature"],
        "to": runs[0]["end_temperature"],
        "picoseconds": runs[0]["picoseconds"],
        "runs": len(runs),
        "broke": broke,
        "mean": bootstrap_mean([list(broke.values())]) if broke else None,
        "completed": float(
            np.mean([min(1.0, one["stable_ps"] / one["picoseconds"]) for one in runs])
        ),
    }


def _of_constant_energy(judged: Sequence[_Judged]) -> list[list[_Judged]]:
    groups: dict[tuple, list[_Judged]] = defaultdict(list)
    for one in judged:
        if one.record["ensemble"] == "nve":
            groups[tuple(one.record[name] for name in _GROUP)].append(one)
    return list(groups.values())


def _drift(runs: Sequence[_Judged]) -> Json:
    """Slope of the total energy, meV/atom/ps, and its scatter about the line, meV/atom."""
    drifts: dict[str, list[float]] = defaultdict(list)
    scatter = []
    for one in runs:
        r, part = one.record, one.sound
        time = _times(r, len(one.positions))[part]
        potential, kinetic = (np.array(r[k], dtype=np.float64) for k in ("potential", "kinetic"))
        energy = (potential + kinetic)[part]
        if len(time) < 3:  # broke at once: no line to speak of
            continue
        energy = 1000 * (energy - energy[0]) / one.positions.shape[1]
        rate = slope(time, energy)
        drifts[r["molecule"]].append(rate)
        scatter.append(float(np.std(energy - rate * time)))
    everything = [rate for rates in drifts.values() for rate in rates]
    r = runs[0].record
    return {
        "timestep": r["timestep"],
        "dtype": r["dtype"],
        "picoseconds": r["picoseconds"],
        "temperature": r["temperature"],
        "drift": t_mean(everything) if everything else None,
        "scatter": float(np.mean(scatter)) if scatter else None,
        "molecules": {name: {"values": v, "drift": t_mean(v)} for name, v in drifts.items()},
    }


def _structure(folder: Folder, suite: Suite, judged: Sequence[_Judged]) -> list[Json]:
    """Agreement with reference trajectories, of the sound part of each run (mean over seeds)."""
    found = []
    for name, molecule in suite.molecules.items():
        runs = [
            o for o in judged if o.record["molecule"] == name and o.record["set"] == "reference"
        ]
        if not (runs and folder.reference(name).is_file()):
            continue
        with np.load(folder.reference(name)) as file:
            frames, told = file["positions"], (float(file["temperature"]), str(file["source"]))
        numbers, bonds = np.array(molecule["numbers"]), np.array(molecule["bonds"])
        truth = distributions(numbers, bonds, frames)
        half = len(frames) // 2
        parts = (distributions(numbers, bonds, p) for p in (frames[:half], frames[half:]))
        errors = [
            agreement(distributions(numbers, bonds, o.positions[o.sound]), truth)
            for o in runs
            if len(o.positions[o.sound]) > 1
        ]
        found.append(
            {
                "molecule": name,
                "temperature": told[0],
                "source": told[1],
                "runs": len(errors),
                "frames": len(frames),
                "errors": _mean_of([e._asdict() for e in errors]),
                # two halves of the reference: what a perfect model could not be asked to beat
                "noise": agreement(*parts)._asdict() if half > 1 else None,
            }
        )
    return found


def _mean_of(rows: Sequence[dict[str, Any]]) -> Json | None:
    if not rows:
        return None
    return {
        name: None if rows[0][name] is None else float(np.mean([row[name] for row in rows]))
        for name in rows[0]
    }


def _core_hours(lines: Sequence[Json]) -> Json:
    """CPU time of the runs, in hours of one core."""
    spent: dict[str, float] = defaultdict(float)
    for line in lines:
        spent[line["scenario"]] += line["cpu_seconds"] / 3600
    return {"total": sum(spent.values()), **spent}


def _without(record: Json, *names: str) -> Json:
    return {name: value for name, value in record.items() if name not in names}


def _json(value: Any) -> Any:
    """JSON has no infinity: a bound that does not exist is None. Named tuples of numbers are
    lists, others objects."""
    if isinstance(value, Interval):
        return [_json(v) for v in value]
    if hasattr(value, "_asdict"):
        return {name: _json(v) for name, v in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _json(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
