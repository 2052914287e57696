"""Read results: who was fastest, and which goals are met."""

import math
from typing import Any, NamedTuple

from benchmarks.speed.bound import NAME as BOUND
from benchmarks.speed.ours import OURS
from benchmarks.speed.throughput import REPLICAS
from benchmarks.speed.timing import Row, ratio, row_of

Result = dict[str, Any]


def timed(result: Result, system: str) -> list[Row]:
    """Rows of a system that were timed in every round."""
    stored = result["times"].get(system, [])
    return [row_of(r) for r in stored if r["status"] == "timed" and r["ms"]]


def fastest(
    result: Result, system: str, name: str, route: str = "", exact: bool = False
) -> Row | None:
    """The fastest variant and thread count of what starts with a name; None if not timed."""
    rows = [
        row
        for row in timed(result, system)
        if (row.name == name if exact else row.name.startswith(name))
        and (not route or row.route == route)
    ]
    return min(rows, key=lambda row: row.median, default=None)


def peer_names(result: Result) -> list[str]:
    """Everything timed anywhere that is neither mlpot nor the bound, in order."""
    names = (row["name"] for rows in result["times"].values() for row in rows)
    return list(dict.fromkeys(n for n in names if not n.startswith(OURS) and n != BOUND))


def against(result: Result, system: str, peer: str, route: str = "OpenMM") -> float | None:
    """mlpot's fastest / the peer's fastest by the same route; None without both."""
    ours, theirs = fastest(result, system, OURS, route), fastest(result, system, peer, route)
    return ratio(ours, theirs) if ours and theirs else None


def to_bound(result: Result, system: str) -> float | None:
    """mlpot's fastest direct call / its matrix products alone."""
    ours, bound = fastest(result, system, OURS, "direct"), fastest(result, system, BOUND)
    return ratio(ours, bound) if ours and bound else None


def worst(result: Result, system: str) -> float | None:
    """The largest ratio to any peer: below 1, mlpot is ahead of all."""
    found = [against(result, system, peer) for peer in peer_names(result)]
    return max((r for r in found if r is not None), default=None)


def exponent(result: Result, small: str, large: str) -> float | None:
    """p in time ~ atoms^p, from the fastest direct engine that did both."""
    atoms = result["systems"]
    found = []
    for row in timed(result, large):
        if not row.name.startswith(OURS) or row.route != "direct":
            continue
        other = fastest(result, small, row.name, "direct", exact=True)
        if other:
            grown = math.log(row.median / other.median)
            found.append((row.median, grown / math.log(atoms[large] / atoms[small])))
    return min(found)[1] if found else None


def memory(result: Result, system: str) -> float | None:
    """kB an atom of the engine that needs least."""
    found = result.get("memory", {}).get(system, {})
    return min((m["kB_per_atom"] for m in found.values() if "kB_per_atom" in m), default=None)


def gain(result: Result) -> float | None:
    """Aggregate steps a second of all replicas over one molecule, both at their fastest."""
    done = [r for r in result.get("replicas", []) if r["gain"] is not None]
    if not done:
        return None
    one, many = min(r["one_ms"] for r in done), min(r["many_ms"] for r in done)
    return REPLICAS * one / many


class Goal(NamedTuple):
    """A number to reach."""

    text: str
    value: float | None
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def goals(result: Result) -> list[Goal]:
    """What the benchmark is for; a value of None was not measured in this run."""
    limits = {
        "torchmd-net TorchMD-ET": 0.30,
        "torchmd-net TensorNet": 0.30,
        "AIMNet2": 0.50,
        "PyG ViSNet": 0.20,
        "GFN2-xTB": 0.50,
    }
    found = [
        Goal(f"aspirin in OpenMM, time / time of {peer}", against(result, "aspirin", peer), limit)
        for peer, limit in limits.items()
    ]
    return found + [
        Goal("peptide in OpenMM, time / time of the fastest peer", worst(result, "peptide"), 1.0),
        Goal("aspirin, time / time of its matrix products", to_bound(result, "aspirin"), 3.0),
        Goal("peptide, time / time of its matrix products", to_bound(result, "peptide"), 2.0),
        Goal(
            "water, 300 to 6,000 atoms: exponent",
            exponent(result, "water-300", "water-6000"),
            1.05,
        ),
        Goal("water, 6,000 atoms: kB an atom", memory(result, "water-6000"), 40.0),
        Goal(
            f"{REPLICAS} replicas of ethanol: aggregate evaluations/s of one",
            gain(result),
            8.0,
            True,
        ),
    ]
