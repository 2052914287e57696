"""Results as Markdown and as a plot."""

from pathlib import Path
from typing import Any

from benchmarks.accuracy.experiment import fill
from benchmarks.speed.bound import NAME as BOUND
from benchmarks.speed.geometries import SYSTEMS
from benchmarks.speed.ours import OURS
from benchmarks.speed.results import (
    Goal,
    Result,
    against,
    fastest,
    goals,
    peer_names,
    to_bound,
)
from benchmarks.speed.throughput import LABELS, REPLICAS

START, END = "<!-- speed: generated -->", "<!-- end -->"


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits without an exponent."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e" in text or abs(value) >= 1000 else text


#: of the README's table
SHOWN = ("aspirin", "imatinib", "peptide", "water-300", "water-6000")


def brief(result: Result) -> str:
    """For the README: a step of dynamics in OpenMM, and the goals."""
    m, shown = result["machine"], [name for name in SHOWN if name in _systems(result)]
    head = (
        "Milliseconds a step of dynamics in OpenMM (platform CPU, float32), each row at its faster "
        f"of 1 and {result['threads']} threads; in brackets: one call only. {m['cpu']}, "
        f"{m['cores_allowed']} of {m['cores']} cores."
    )
    rows = [(name, route) for name, route in _rows(result) if route == "OpenMM"]
    legend = (
        "Goals are judged by mlpot compiled; TorchForce, which OpenMM takes until a model has "
        "been compiled, is slower by the table. Matrix products: those of the network alone, a "
        "lower bound. torchmd-net, PyG and MACE have random weights: the same work, no accuracy."
    )
    table = _table(result, shown, rows)
    return "\n".join([head, "", *table, "", *_goals(goals(result)), "", legend])


def markdown(result: Result) -> str:
    """All tables, as `show` prints them and `render` writes them to results/MODE.md."""
    return "\n".join(
        [
            *_machine(result),
            "",
            *_times(result),
            "",
            *_ratios(result),
            "",
            *_goals(goals(result)),
            "",
            *_throughput(result),
        ]
    )


def _machine(result: Result) -> list[str]:
    m = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    load = result["load_average"]
    return [
        "Milliseconds a step of dynamics in OpenMM (platform CPU), networks in float32;",
        f"medians of {result['rounds']} rounds in which all take turns, each row at its faster of",
        f"1 and {result['threads']} threads (from 1,000 atoms on, and those that read the number",
        f"once, at {result['threads']}). In brackets: one call only. In italics: no dynamics,",
        f"energy and forces alone. {m['cpu']}, {m['cores_allowed']} of {m['cores']} cores, load",
        f"{load[0]} before and {load[1]} after. Python {m['python']}, {versions}.",
    ]


def _systems(result: Result) -> list[str]:
    return [name for name in SYSTEMS if result["times"].get(name)]


def _times(result: Result) -> list[str]:
    return _table(result, _systems(result), _rows(result))


def _table(result: Result, systems: list[str], rows: list[tuple[str, str]]) -> list[str]:
    head = " | ".join(f"{SYSTEMS[s].what.split(', ')[0]} ({SYSTEMS[s].atoms:,})" for s in systems)
    lines = [f"| through OpenMM, ms | {head} |", "|---|" + "---|" * len(systems)]
    for name, route in rows:
        cells = [_cell(result, system, name, route) for system in systems]
        if set(cells) != {"–"}:
            label = name if route == "OpenMM" else f"*{name}, {route}*" if route != "bound" else ""
            lines.append(f"| {label or f'*{BOUND}*'} | {' | '.join(cells)} |")
    return lines


def _rows(result: Result) -> list[tuple[str, str]]:
    """mlpot's routes first, then the peers, then the bound."""
    seen = dict.fromkeys(
        (row["name"], row["route"]) for rows in result["times"].values() for row in rows
    )
    ours = [(n, r) for n, r in seen if n.startswith(OURS) and r != "ASE"]
    ours.sort(key=lambda row: row[1] != "OpenMM")
    return ours + [(name, "OpenMM") for name in peer_names(result)] + [(BOUND, "bound")]


def _cell(result: Result, system: str, name: str, route: str) -> str:
    row = fastest(result, system, name, route, exact=True)
    if row:
        return number(row.median)
    stored = [r for r in result["times"][system] if r["name"] == name and r["route"] == route]
    slow = [r["ms"][0] for r in stored if r["status"] == "slow"]
    if slow:
        return f"({number(min(slow))})"
    failed = any(r["status"] == "failed" for r in stored)
    return "failed" if failed else "–"


def _ratios(result: Result) -> list[str]:
    """mlpot / peer by every route."""
    systems = [s for s in ("aspirin", "imatinib", "peptide", "water-300") if s in _systems(result)]
    if not systems:
        return []
    routes = ("OpenMM", "ASE", "direct")
    head = " | ".join(f"{system}: {' / '.join(routes)}" for system in systems)
    lines = [
        f"| time of mlpot / time of | {head} |",
        "|---|" + "---|" * len(systems),
    ]
    for peer in peer_names(result):
        cells = [
            " / ".join(number(against(result, system, peer, route), 2) for route in routes)
            for system in systems
        ]
        if set("".join(cells)) != set("– /"):
            lines.append(f"| {peer} | {' | '.join(cells)} |")
    cells = [f"– / – / {number(to_bound(result, system), 2)}" for system in systems]
    if set("".join(cells)) == set("– /"):
        return lines
    return [*lines, f"| *{BOUND}* | {' | '.join(cells)} |"]


def _goals(found: list[Goal]) -> list[str]:
    lines = ["| goal | wanted | measured | |", "|---|---|---|---|"]
    for goal in found:
        sign = "at least" if goal.at_least else "at most"
        said = {True: "met", False: "missed", None: "not measured"}[goal.met]
        lines.append(f"| {goal.text} | {sign} {goal.limit:g} | {number(goal.value)} | {said} |")
    return lines


def _throughput(result: Result) -> list[str]:
    lines = []
    for r in result.get("replicas", []):
        if r["gain"] is None:
            lines.append(f"- {REPLICAS} replicas, {r['engine']}: {r['status']}")
            continue
        rate = 1e3 * REPLICAS / r["many_ms"]
        lines.append(
            f"- {REPLICAS} replicas of ethanol in one call, {r['engine']}, {_threads(r)}: "
            f"{number(rate)} evaluations/s together, {number(r['gain'])} times one"
        )
    alone = result.get("training_alone", {})
    where = f"; {alone['machine']['cpu']}, load {alone['load'][0]:g} before" if alone else ""
    for t in alone.get("training") or result.get("training", []):
        lines.append(
            f"- {t.get('task', LABELS)}, {t['trainer']}, {_threads(t)}: "
            f"{number(t['molecules_per_s'])} molecules/s (17 atoms each, batches of 512 "
            f"atoms{where})"
        )
    for system, engines in result.get("memory", {}).items():
        for engine, m in engines.items():
            said = m.get("failed") or f"{number(m['kB_per_atom'])} kB an atom at the peak"
            lines.append(f"- memory, {system}, {engine}: {said}")
    return lines


def _threads(row: dict[str, Any]) -> str:
    return "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"


def write_readme(readme: Path, text: str) -> bool:
    """Replace what stands between the markers; False where there are none."""
    return fill(readme, START, text, END)


def plot(result: Result, path: Path) -> None:
    """Milliseconds against atoms, log-log: one line each, mlpot's and the bound's thicker."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5.0), layout="constrained")
    lines = [
        ("mlpot, OpenMM", OURS, "OpenMM", {"color": "black", "lw": 2.5, "marker": "o"}),
        (BOUND, BOUND, "bound", {"color": "black", "lw": 1.5, "ls": "--"}),
    ]
    lines += [(n, n, "OpenMM", {"lw": 1.0, "marker": "."}) for n in peer_names(result)]
    for label, name, route, style in lines:
        rows = [(SYSTEMS[s].atoms, fastest(result, s, name, route)) for s in _systems(result)]
        points = [(atoms, row.median) for atoms, row in rows if row]
        if points:
            axes.loglog(*zip(*points, strict=True), label=label, **style)
    axes.set_xlabel("atoms")
    axes.set_ylabel(f"ms a step, the faster of 1 and {result['threads']} threads")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)
