"""From records and trajectories to numbers: cheap, and the same every time it is done."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlpot.analysis import criteria
from mlpot.analysis.elsewhere import Elsewhere
from mlpot.analysis.flags import guarded
from mlpot.analysis.intervals import (
    Interval,
    bootstrap_mean,
    drawn_over,
    fraction,
    median,
    slope,
    survival,
    t_mean,
)
from mlpot.analysis.lengths import Lengths
from mlpot.analysis.records import Folder, Json, Suite, failures_of, write_json
from mlpot.analysis.structure import agreement, distributions
from mlpot.analysis.verdicts import ROOM, SETTLING, Judged, judge_runs
from mlpot.md.bonds import BONDED

#: ps, after which a distribution no longer knows that the run began in a minimum
WARM = 1.0

#: share of a run at constant energy before which it must not break, to tell a drift
_MOST = 0.5

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


def analyze(out: str | Path, elsewhere: Elsewhere | None = None) -> Json:
    """Apply the rules to all runs, and write ``summary.json``.

    Args:
        out: folder of the suite.
        elsewhere: runs of the same suite that were done on another machine. Those that the suite
            does not ask for are passed over; all runs here are judged by the same lengths.

    Its parts: ``model``, ``mode``, ``machine``, ``rules`` (their thresholds), ``skipped``,
    ``failed`` (why, of jobs that failed and runs that their calculator ended), ``missing``
    (planned runs without a verdict), ``core_hours``; ``groups`` (one for each scenario,
    temperature, time step and distortion: see `_group`), ``ramp`` (thermostat at which runs
    broke), ``drift`` (meV/atom/ps), ``structure``, ``accuracy``, ``refusals``, ``runs`` (one line
    each, with its worst frame; those that failed are left out), ``lengths`` (Å, mean over runs at
    300 K that bonds of a molecule were compared with, where there is one), ``provisional`` (runs
    that were judged without such a mean), and ``mobile`` (bonds of a molecule that are not judged,
    because they open in its reference trajectory). Intervals are [value, low, high], 95 %; None
    where there is none.

    Raises:
        DataError: the folder holds no suite, a trajectory is missing, or what was done elsewhere
            was judged by other rules.
    """
    folder = Folder(out)
    suite = folder.suite()
    elsewhere = elsewhere or Elsewhere()
    elsewhere.check(_rules())
    summary = _json(_sum(folder, suite, elsewhere))
    write_json(folder.summary_file, summary)
    return summary


def _sum(folder: Folder, suite: Suite, elsewhere: Elsewhere) -> Json:
    latest = folder.records_of(suite)
    records, others = ([latest[k] for k in ks if k in latest] for ks in (suite.runs, suite.others))
    everything, lengths = judge_runs(folder, suite, records, elsewhere.lengths)
    judged = [one for one in everything if not one.failed]
    failed = {one.record["key"]: _why(one.record) for one in everything if one.failed}
    here = [_line(one) for one in judged]
    lines = here + elsewhere.asked(set(suite.runs) - {one["key"] for one in here})
    planned = {key: place for place, key in enumerate(suite.runs)}
    lines.sort(key=lambda one: planned[one["key"]])  # wherever each was done
    groups = _grouped(lines)
    return {
        "version": suite.version,
        "model": suite.model,
        "mode": suite.mode,
        "machine": suite.machine,
        "rules": _rules(),
        "skipped": suite.skipped,
        "failed": {**failures_of(folder.records_file, suite.jobs), **failed},
        "missing": len(suite.runs) - len(lines),
        "core_hours": _core_hours(lines),
        "groups": [_group(runs) for runs in groups.values()],
        "ramp": [_ramp(r) for r in groups.values() if r[0]["end_temperature"] is not None],
        "drift": [_drift(r) for r in _of_constant_energy(judged)],
        "structure": _structure(folder, suite, judged),
        "accuracy": [_without(r, "energies", "forces") for r in others if r["kind"] == "accuracy"],
        "refusals": [r for r in others if r["kind"] == "refusal"],
        "runs": lines,
        "lengths": {n: of.mean.tolist() for n, of in lengths.items() if _kept(suite, n, of)},
        "provisional": sum(one["provisional"] for one in lines),
        "mobile": {name: of.mobile for name, of in lengths.items() if of.mobile},
    }


def _rules() -> Json:
    return {
        "bond_departure_A": criteria.BOND_DEPARTURE,
        "bonded_covalent_radii": BONDED,
        "reference_K": ROOM,
        "settling_of_distorted_ps": SETTLING,
        "lost_hydrogen_A": criteria.HYDROGEN,
        "explosion_K": criteria.TOO_HOT,
        "explosion_jump": criteria.JUMP,
    }


def _kept(suite: Suite, name: str, lengths: Lengths) -> bool:
    """Is it a mean at 300 K? A reference brings its own, wherever it is."""
    return lengths.final and suite.molecules[name]["set"] != "reference"


def _line(one: Judged) -> Json:
    keep = ("id", "key", "molecule", "set", "seed", *_GROUP, "trajectory", "reason", "cpu_seconds")
    told = {name: one.record[name] for name in keep}
    told |= {"displaced": one.record.get("displaced"), "provisional": not one.final}
    told |= {"guarded": one.record.get("guarded", False), "flag": one.flag}
    return {**told, **one.verdict._asdict()}


def _why(record: Json) -> str:
    """Of a run that failed; one text for all seeds, so that a list of them is short."""
    what = f"{record['scenario']} of {record['molecule']} at {record['temperature']:g} K"
    return f"{what}: {record['reason']}"


# --- many runs -----------------------------------------------------------------------------------


def _grouped(lines: Sequence[Json]) -> dict[tuple, list[Json]]:
    groups: dict[tuple, list[Json]] = defaultdict(list)
    for line in lines:
        groups[tuple(line[name] for name in _GROUP)].append(line)
    return groups


def _group(runs: Sequence[Json]) -> Json:
    """Of runs of one kind, besides what they share (`_GROUP`) and the numbers of `_row`:
    ``survival`` (Kaplan-Meier, ps), ``causes`` (of breaks: how many), ``worst`` (Å, furthest
    departure of a bond), ``displaced`` (Å, mean over runs of what a start was really off by),
    ``cpu_seconds``, ``guard`` (`mlpot.analysis.flags`), and a `_row` for each of
    ``molecules``."""
    by_molecule: dict[str, list[Json]] = defaultdict(list)
    for one in runs:
        by_molecule[one["molecule"]].append(one)
    off = [one["displaced"] for one in runs if one["displaced"] is not None]
    return {
        **{name: runs[0][name] for name in _GROUP},
        **_row(list(by_molecule.values())),
        "survival": survival([one["stable_ps"] for one in runs], [one["broke"] for one in runs]),
        "causes": dict(Counter(one["cause"].split()[0] for one in runs if one["broke"])),
        "worst": _worst(runs),
        "displaced": float(np.mean(off)) if off else None,
        "cpu_seconds": sum(one["cpu_seconds"] for one in runs),
        "guard": guarded(runs),
        "molecules": {name: _row([members]) for name, members in by_molecule.items()},
    }


def _worst(runs: Sequence[Json]) -> float:
    """Å; infinite where one had no bounds, for which a line from JSON has None."""
    found = [np.inf if one["worst_departure"] is None else one["worst_departure"] for one in runs]
    return float(max(found, default=0.0))


def _row(by_molecule: Sequence[Sequence[Json]]) -> Json:
    """``runs``, ``sound`` (of them, by all rules), ``fraction`` (that share), ``stable_ps``; and
    rule by rule ``bond_ps`` (until a bond broke, or the end), ``lost_hydrogen`` and ``exploded``
    (how many runs). ``over``: what intervals of picoseconds are drawn over."""
    runs = [one for members in by_molecule for one in members]
    whole = sum(not one["broke"] for one in runs)
    end = max(one["picoseconds"] for one in runs)
    return {
        "runs": len(runs),
        "sound": whole,
        "fraction": fraction(whole, len(runs)),
        "stable_ps": bootstrap_mean([[o["stable_ps"] for o in m] for m in by_molecule], 0.0, end),
        "bond_ps": bootstrap_mean(
            [[_until(o, "bond_ps") for o in m] for m in by_molecule], 0.0, end
        ),
        "lost_hydrogen": sum(one["hydrogen_ps"] is not None for one in runs),
        "exploded": sum(one["explosion_ps"] is not None for one in runs),
        "over": drawn_over(by_molecule),
    }


def _until(run: Json, rule: str) -> float:
    return run["end_ps"] if run[rule] is None else run[rule]


def _ramp(runs: Sequence[Json]) -> Json:
    """Thermostat (K) at which runs broke: ``broke`` (run -> K), and by the estimator of survival,
    to which runs that reached the end whole count as watched until then, ``survival`` over K and
    its ``median``. ``completed``: mean share of the way, until a break or the end."""
    kelvin, first = [heated_to(one) for one in runs], runs[0]
    curve = survival(kelvin, [one["broke"] for one in runs])
    curve.times[0] = first["temperature"]
    return {
        "from": first["temperature"],
        "to": first["end_temperature"],
        **{name: first[name] for name in ("picoseconds", "timestep", "distortion")},
        "runs": len(runs),
        "broke": {
            f"{one['molecule']}, seed {one['seed']}": k
            for one, k in zip(runs, kelvin, strict=True)
            if one["broke"]
        },
        "survival": curve,
        "median": median(curve),
        "completed": float(
            np.mean([min(1.0, one["stable_ps"] / one["picoseconds"]) for one in runs])
        ),
    }


def heated_to(run: Json) -> float:
    """K of the thermostat where a run of a ramp broke, or at its end."""
    way = min(1.0, run["stable_ps"] / run["picoseconds"])
    return run["temperature"] + way * (run["end_temperature"] - run["temperature"])


def _of_constant_energy(judged: Sequence[Judged]) -> list[list[Judged]]:
    groups: dict[tuple, list[Judged]] = defaultdict(list)
    for one in judged:
        if one.record["ensemble"] == "nve":
            groups[tuple(one.record[name] for name in _GROUP)].append(one)
    return list(groups.values())


def _drift(runs: Sequence[Judged]) -> Json:
    """Slope of the total energy, meV/atom/ps, and its scatter about the line, meV/atom.

    Of a run that broke, only the part before counts, which may look as good as any, and only if
    it is most of the run: so ``broke`` says how many did, of all ``runs``, and ``counted`` how many
    have a slope. The interval is over the seeds of each molecule. ``largest``: the molecule whose
    mean drift is furthest from 0, as many molecules may hide one.
    """
    drifts: dict[str, list[float]] = defaultdict(list)
    scatter = []
    for one in runs:
        r, part = one.record, one.sound
        time = one.times[part]
        potential, kinetic = (np.array(r[k], dtype=np.float64) for k in ("potential", "kinetic"))
        energy = (potential + kinetic)[part]
        if len(time) < one.record["picoseconds"] * _MOST * 1000 / one.record["interval"]:
            continue  # broke early: over a few frames a vibration looks like a drift
        energy = 1000 * (energy - energy[0]) / one.positions.shape[1]
        rate = slope(time, energy)
        drifts[r["molecule"]].append(rate)
        scatter.append(float(np.std(energy - rate * time)))
    means = {name: float(np.mean(rates)) for name, rates in drifts.items()}
    worst = max(means, key=lambda name: abs(means[name]), default=None)
    r = runs[0].record
    return {
        **{name: r[name] for name in ("timestep", "dtype", "picoseconds", "temperature")},
        "runs": len(runs),
        "broke": sum(one.verdict.broke for one in runs),
        "counted": sum(len(rates) for rates in drifts.values()),
        "drift": t_mean(*drifts.values()) if drifts else None,
        "scatter": float(np.mean(scatter)) if scatter else None,
        "largest": None if worst is None else {"molecule": worst, "drift": means[worst]},
        "molecules": {name: {"values": v, "drift": t_mean(v)} for name, v in drifts.items()},
    }


def _structure(folder: Folder, suite: Suite, judged: Sequence[Judged]) -> list[Json]:
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
            agreement(distributions(numbers, bonds, frames_of_it), truth)
            for o in runs
            if len(frames_of_it := o.positions[_settled(o)]) > 1
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


def _settled(one: Judged) -> slice:
    """Its sound frames; of a run that is long enough, without those that still know the start."""
    skipped = int(np.searchsorted(one.times, WARM)) if one.times[-1] > 2 * WARM else 0
    return slice(skipped, one.sound.stop)


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
