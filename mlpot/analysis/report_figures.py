"""Figures of a report: from the numbers of suites to traces and layouts of plotly.js.

One colour a model; where there is one model only, one colour a condition.
"""

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from mlpot.analysis.records import Json
from mlpot.analysis.report_data import Side, condition, group_name
from mlpot.analysis.report_page import Figure, axis
from mlpot.analysis.summary import heated_to

Trace = dict[str, Any]

#: tones that can be read on white and on black
COLOURS = ("#3b82c4", "#e07b39", "#2a9d6f", "#c2569b", "#8a7fd4", "#b08d2e", "#d0504e", "#5b9aa0")

#: a second sign besides the colour
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

REFERENCE = "#8a8f94"

#: frames; a larger set is no scan whose energies one could follow
SCAN = 100

_SHARE = axis("share of runs unbroken", range=[-0.02, 1.05], tickformat=".0%")


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def line(i: int) -> dict[str, Any]:
    return {"color": colour(i), "dash": DASHES[i % len(DASHES)], "width": 2}


# --- survival ------------------------------------------------------------------------------------


def survival_figures(sides: Sequence[Side]) -> list[Figure]:
    """Kaplan-Meier curves: a figure for each condition, or for one model each scenario."""
    panels: dict[tuple[str, float], list[tuple[str, Json]]] = defaultdict(list)
    for side in sides:
        for group in side.summary["groups"]:
            if group["end_temperature"] is not None:  # drawn over its temperature
                continue
            name, label = group["scenario"], condition(group)
            if len(sides) > 1:
                name, label = group_name(group), side.label
            panels[name, group["picoseconds"]].append((label, group["survival"]))
    labels = [side.label for side in sides]
    return [
        Figure(
            f"{name}, {ps:g} ps",
            [
                trace
                for i, (label, curve) in enumerate(curves)
                for trace in curve_traces(
                    curve, label, labels.index(label) if label in labels else i
                )
            ],
            {"xaxis": axis("time, ps", range=[0, 1.02 * ps]), "yaxis": _SHARE},
        )
        for (name, ps), curves in panels.items()
    ]


def curve_traces(curve: Json, label: str, i: int, unit: str = "ps") -> list[Trace]:
    """A survival curve and its band, which go on and off together."""
    x, name = curve["times"], escape(label)
    shared = {"x": x, "legendgroup": name, "mode": "lines"}
    edge = {"width": 0, "shape": "hv", "color": colour(i)}
    hidden = {**shared, "line": edge, "showlegend": False, "hoverinfo": "skip"}
    return [
        {**hidden, "y": curve["low"]},
        {**hidden, "y": curve["high"], "fill": "tonexty", "fillcolor": f"{colour(i)}26"},
        {
            **shared,
            "y": curve["probability"],
            "name": name,
            "line": {**line(i), "shape": "hv"},
            "customdata": curve["at_risk"],
            "hovertemplate": f"%{{y:.1%}} after %{{x:.4g}} {unit}, %{{customdata}} watched",
        },
    ]


# --- temperature ---------------------------------------------------------------------------------


def ladder_figures(sides: Sequence[Side]) -> list[Figure]:
    """What becomes of runs as the temperature rises: share unbroken, and stable time."""
    ladders = [
        (name, side.label, i if len(sides) > 1 else k, k, groups)
        for i, side in enumerate(sides)
        for k, (name, groups) in enumerate(_ladders(side).items())
    ]
    if not ladders:
        return []
    share: list[Trace] = []
    stable: list[Trace] = []
    middle = max(tone for _, _, tone, _, _ in ladders) / 2
    for name, label, tone, k, groups in ladders:
        shared = {
            # a little apart, or their bars hide each other
            "x": [g["temperature"] * (1 + 0.012 * (tone - middle)) for g in groups],
            "name": escape(f"{label}, {name}" if len(sides) > 1 else name),
            "mode": "lines+markers",
            "line": {"color": colour(tone), "dash": DASHES[k % len(DASHES)]},
            "customdata": [
                f"{g['temperature']:g} K, {g['sound']} of {g['runs']} whole" for g in groups
            ],
        }
        for traces, key, form in ((share, "fraction", ".1%"), (stable, "stable_ps", ".3g")):
            hover = {"hovertemplate": f"%{{y:{form}}}, %{{customdata}}"}
            traces.append({**shared, **with_bars([g[key] for g in groups]), **hover})
    x = axis("temperature, K")
    return [
        Figure("Share of runs unbroken", share, {"xaxis": x, "yaxis": _SHARE}),
        Figure(
            "Stable time, mean over runs",
            stable,
            {"xaxis": x, "yaxis": axis("stable time, ps", rangemode="tozero")},
        ),
    ]


def _ladders(side: Side) -> dict[str, list[Json]]:
    """Scenarios at two or more constant temperatures."""
    found: dict[str, list[Json]] = defaultdict(list)
    for g in side.summary["groups"]:
        if g["ensemble"] == "nvt" and g["end_temperature"] is None and not g["distortion"]:
            found[f"{g['scenario']}, {g['picoseconds']:g} ps"].append(g)
    return {
        name: sorted(groups, key=lambda g: g["temperature"])
        for name, groups in found.items()
        if len({g["temperature"] for g in groups}) > 1
    }


def with_bars(values: Sequence[Sequence[float | None]], along: str = "y") -> Trace:
    """Values with their intervals; no bar where a bound does not exist."""
    up = [None if v is None or h is None else h - v for v, _, h in values]
    down = [None if v is None or low is None else v - low for v, low, _ in values]
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.2}
    return {along: [v for v, _, _ in values], f"error_{along}": bars}


def ramp_figures(sides: Sequence[Side]) -> list[Figure]:
    """Thermostat at which heated runs broke: the share left, and each molecule."""
    found = [(i, side, ramp) for i, side in enumerate(sides) for ramp in side.summary["ramp"]]
    if not found:
        return []
    curves: list[Trace] = []
    points: list[Trace] = []
    for i, side, ramp in found:
        label = side.label
        if sum(other is side for _, other, _ in found) > 1:
            label += f", {ramp['from']:g} to {ramp['to']:g} K in {ramp['picoseconds']:g} ps"
        curves += curve_traces(ramp["survival"], label, i, "K")
        points.append(_strip(_heated(side, ramp), label, i))
    least = min(ramp["from"] for _, _, ramp in found)
    most = max(ramp["to"] for _, _, ramp in found)
    pad = 0.03 * (most - least)
    x = axis("thermostat, K", range=[least - pad, most + pad])
    height = 120 + 18 * len({name for trace in points for name in trace["y"]})
    strip = {"xaxis": x, "yaxis": axis("", type="category"), "height": max(320, height)}
    caption = "A filled circle broke there; an open triangle reached the end of the ramp whole."
    return [
        Figure("Share of runs unbroken while heated", curves, {"xaxis": x, "yaxis": _SHARE}),
        Figure("Each molecule", points, strip, caption),
    ]


def _heated(side: Side, ramp: Json) -> list[tuple[str, float, bool]]:
    """(molecule, K of the thermostat at its end, whether it broke) of the runs of a ramp."""
    same = {name: ramp[name] for name in ("picoseconds", "timestep", "distortion")}
    runs = side.runs(temperature=ramp["from"], end_temperature=ramp["to"], **same)
    return [(run["molecule"], heated_to(run), run["broke"]) for run in runs]


def _strip(heated: Sequence[tuple[str, float, bool]], label: str, i: int) -> Trace:
    symbols = ["circle" if broke else "triangle-right-open" for _, _, broke in heated]
    return {
        "x": [kelvin for _, kelvin, _ in heated],
        "y": [escape(name) for name, _, _ in heated],
        "name": escape(label),
        "mode": "markers",
        "marker": {"symbol": symbols, "color": colour(i), "size": 9},
        "hovertemplate": "%{y}: %{x:.0f} K",
    }


# --- constant energy -----------------------------------------------------------------------------


def drift_figures(sides: Sequence[Side]) -> list[Figure]:
    """Drift by time step: every run, and the mean with its interval."""
    steps = sorted({d["timestep"] for side in sides for d in side.summary["drift"]})
    traces: list[Trace] = []
    for i, side in enumerate(sides):
        found = [d for d in side.summary["drift"] if d["drift"] is not None]
        if not found:
            continue
        aside = 0.16 * (i - (len(sides) - 1) / 2)
        values = [
            (steps.index(d["timestep"]) + aside - 0.04, value, escape(name))
            for d in found
            for name, molecule in d["molecules"].items()
            for value in molecule["values"]
        ]
        traces += [
            {
                "x": [steps.index(d["timestep"]) + aside + 0.04 for d in found],
                **with_bars([d["drift"] for d in found]),
                "name": escape(side.label),
                "mode": "markers",
                "marker": {"color": colour(i), "size": 10, "symbol": "diamond"},
                "hovertemplate": "mean %{y:.3g} meV/atom/ps",
            },
            {
                "x": [x for x, _, _ in values],
                "y": [y for _, y, _ in values],
                "customdata": [name for _, _, name in values],
                "mode": "markers",
                "marker": {"color": colour(i), "size": 6, "opacity": 0.5},
                "showlegend": False,
                "hovertemplate": "%{customdata}: %{y:.3g} meV/atom/ps",
            },
        ]
    ticks = {"tickvals": list(range(len(steps))), "ticktext": [f"{dt:g}" for dt in steps]}
    layout = {"xaxis": axis("time step, fs", **ticks), "yaxis": axis("drift, meV/atom/ps")}
    caption = "Diamonds: means over runs with 95 % intervals; dots: single runs."
    return [Figure("Drift of the total energy", traces, layout, caption)] if traces else []


def energy_figures(sides: Sequence[Side]) -> list[Figure]:
    """Total energy of the first run of each molecule while it was sound, a figure a time step."""
    panels: dict[float, list[Trace]] = defaultdict(list)
    for i, side in enumerate(sides):
        for run in side.runs(seed=0):
            record = side.records[run["key"]]
            if record["ensemble"] == "nve":
                traces = panels[record["timestep"]]
                dash = DASHES[list(side.suite.molecules).index(run["molecule"]) % len(DASHES)]
                traces.append(_energy(side, run, record, {"color": colour(i), "dash": dash}))
    y = axis("energy less the first, meV/atom")
    return [
        Figure(f"Total energy at {dt:g} fs", traces, {"xaxis": axis("time, ps"), "yaxis": y})
        for dt, traces in sorted(panels.items())
    ]


def _energy(side: Side, run: Json, record: Json, style: Json) -> Trace:
    potential, kinetic = (np.array(record[k], dtype=np.float64) for k in ("potential", "kinetic"))
    energy = (potential + kinetic)[: side.sound_frames(run)]
    every = max(1, len(energy) // 250)  # more than a phone has pixels for
    energy = 1000 * (energy - energy[:1]) / len(side.numbers(run["molecule"]))
    times = np.arange(len(energy)) * record["interval"] / 1000
    return {
        "x": np.round(times[::every], 5).tolist(),
        "y": np.round(energy[::every], 5).tolist(),
        "name": escape(f"{side.label}, {run['molecule']}"),
        "mode": "lines",
        "line": {**style, "width": 1.2},
        "hovertemplate": "%{y:.3g} meV/atom",
    }


# --- accuracy ------------------------------------------------------------------------------------


def parity_figures(sides: Sequence[Side]) -> list[Figure]:
    """Prediction against reference, for each labelled set: energies, then forces."""
    panels: dict[tuple[str, str], list[Trace]] = defaultdict(list)
    for i, side in enumerate(sides):
        for record in side.records.values():
            if record["kind"] != "accuracy":
                continue
            for what in ("energies", "forces"):
                if record[what] is not None:
                    panels[record["name"], what].append(_parity(record[what], side.label, i))
    units = {"energies": "eV", "forces": "eV/Å"}
    return [
        Figure(
            f"{name}: {what}",
            [_diagonal(traces), *traces],
            {
                "xaxis": axis(f"reference, {units[what]}"),
                "yaxis": axis(f"model, {units[what]}"),
                "hovermode": "closest",
            },
        )
        for (name, what), traces in panels.items()
    ]


def _parity(pairs: Sequence[Sequence[float]], label: str, i: int) -> Trace:
    return {
        "x": pairs[0],
        "y": pairs[1],
        "name": escape(label),
        "mode": "markers",
        "marker": {"color": colour(i), "size": 4, "opacity": 0.6},
    }


def scan_figures(sides: Sequence[Side]) -> list[Figure]:
    """Energies in the order of the frames, of sets so small that they may be scans."""
    panels: dict[str, list[Trace]] = {}
    for i, side in enumerate(sides):
        for record in side.records.values():
            energies = record.get("energies")
            if record["kind"] != "accuracy" or energies is None or len(energies[0]) > SCAN:
                continue
            grey = {"color": REFERENCE, "width": 3}
            truth = {"y": energies[0], "name": "reference", "mode": "lines", "line": grey}
            mine = {"y": energies[1], "name": escape(side.label), "mode": "lines", "line": line(i)}
            panels.setdefault(record["name"], [truth]).append(mine)
    layout = {"xaxis": axis("frame"), "yaxis": axis("energy less its mean, eV")}
    return [Figure(f"{name}: by frame", traces, layout) for name, traces in panels.items()]


def _diagonal(traces: Sequence[Trace]) -> Trace:
    truth = [x for trace in traces for x in trace["x"]]
    ends = [min(truth), max(truth)]
    grey = {"color": REFERENCE, "width": 1}
    return {"x": ends, "y": ends, "mode": "lines", "line": grey, "hoverinfo": "skip"} | {
        "showlegend": False
    }
