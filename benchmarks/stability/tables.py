"""Sums of all models as Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.experiment import fill
from mlpot.analysis.words import (
    DRIFT,
    INTERVALS,
    MEDIAN,
    RULES,
    broke_words,
    judged_otherwise,
    largest_words,
    marked,
    median_words,
    start_words,
)

Summary = dict[str, Any]

START, END = "<!-- stability: generated -->", "<!-- end -->"
PEERS = "<!-- stability of peers: generated -->"


def markdown(summaries: Sequence[Summary]) -> str:
    """All tables, as `show` prints them and `render` writes them to results/MODE.md."""
    parts = [
        _intro(summaries[0]),
        _groups(summaries),
        _ramps(summaries),
        _guards(summaries),
        _drifts(summaries),
        _structure(summaries),
        _accuracy(summaries),
        _goals(summaries[0]),
        _left_out(summaries),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def write_block(path: Path, block: str, start: str = START) -> bool:
    """Replace what stands between the markers; False where there are none."""
    return fill(path, start, block, END)


def interval(values: Sequence[float | None] | None, digits: int = 3, sign: bool = False) -> str:
    """Value (low to high), or the value alone where the interval is a point or absent."""
    if values is None or values[0] is None:
        return "–"
    form = f"{{:{'+' if sign else ''}.{digits}g}}"
    low, high = values[1:]
    if low is None or high is None or low == high:
        return form.format(values[0])
    return f"{form.format(values[0])} ({form.format(low)} to {form.format(high)})"


def _intro(summary: Summary) -> list[str]:
    rules, m = summary["rules"], summary["machine"]
    hours = summary["core_hours"]["total"]
    return [
        f"Langevin dynamics at {_timesteps(summary)} fs from relaxed starts, mode "
        f"{summary['mode']}. A run is whole",
        f"until a bond is {rules['bond_departure_A']:g} Å off its mean at {rules['reference_K']:g} "
        "K, a hydrogen is lost, or it explodes; frames are judged every 20 fs (every 10 fs at "
        "constant energy). 95 % intervals in brackets.",
        f"{summary['model']}: {hours:.3g} core-hours ({m['processor']}, {m['device']}, torch "
        f"{m['torch']}).",
    ]


def _timesteps(summary: Summary) -> str:
    nvt = {g["timestep"] for g in summary["groups"] if g["ensemble"] == "nvt"}
    return ", ".join(f"{dt:g}" for dt in sorted(nvt))


def _groups(summaries: Sequence[Summary]) -> list[str]:
    lines = [
        "| simulation | ps | model | whole | share, % | stable ps | bonds hold, ps | H lost | "
        "exploded | broken by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, ps, model, g in _by_group(summaries):
        share = interval([100 * v for v in g["fraction"]])
        causes = ", ".join(f"{cause} {count}" for cause, count in g["causes"].items())
        stable, bonds = (marked(interval(g[k]), g, k) for k in ("stable_ps", "bond_ps"))
        rules = f"{stable} | {bonds} | {g['lost_hydrogen']} | {g['exploded']} | {causes}"
        whole = f"{g['sound']} of {g['runs']}"
        lines.append(f"| {name} | {ps:g} | {model} | {whole} | {share} | {rules} |")
    starts = [f"{s['model']}, {words}." for s in summaries for words in start_words(s)]
    return [*lines, "", INTERVALS, RULES, *starts]


def _by_group(summaries: Sequence[Summary]) -> list[tuple[str, float, str, Summary]]:
    """Groups in the order of the first model that has them, models side by side."""
    rows: dict[tuple[str, float], list[tuple[str, Summary]]] = {}
    for summary in summaries:
        for g in summary["groups"]:
            if g["ensemble"] == "nvt":  # constant energy has a table of its own
                rows.setdefault((_label(g), g["picoseconds"]), []).append((summary["model"], g))
    return [(*key, model, g) for key, found in rows.items() for model, g in found]


def _label(g: Summary) -> str:
    text = f"{g['scenario']} {g['temperature']:g} K, {g['timestep']:g} fs"
    if g["end_temperature"] is not None:
        text = f"{g['scenario']} {g['temperature']:g} to {g['end_temperature']:g} K, "
        text += f"{g['timestep']:g} fs"
    return text + (f", start off by {g['distortion']:g} Å" if g["distortion"] else "")


def _ramps(summaries: Sequence[Summary]) -> list[str]:
    lines = [
        f"Heated from {r['from']:g} to {r['to']:g} K in {r['picoseconds']:g} ps, "
        f"{summary['model']}: {len(r['broke'])} of {r['runs']} broke"
        + (f", median {median_words(r)} K." if r["broke"] else ".")
        for summary in summaries
        for r in summary["ramp"]
    ]
    return [*lines, MEDIAN] if lines else []


def _guards(summaries: Sequence[Summary]) -> list[str]:
    rows = []
    for name, ps, model, g in _by_group(summaries):
        if not (told := g.get("guard")):
            continue
        lead = "–" if told["lead_ps"] is None else f"{1000 * told['lead_ps']:.0f}"
        rows.append(
            f"| {name} | {ps:g} | {model} | {told['flagged_whole']} of {told['whole']} | "
            f"{told['flagged_before']} of {told['broke']} | {lead} | {told['for_length']} | "
            f"{told['flagged_relaxing']} of {told['broke_relaxing']} |"
        )
    head = [
        "The guard looked on and ended nothing. Flagged before: while every bond was whole; the "
        "lead is from the flag to the first frame that was broken. What relaxing broke, before the "
        "first step, is told after the fact.",
        "",
        "| simulation | ps | model | flagged of the whole | flagged before of the broken | median "
        "lead, fs | for a length | flagged of what relaxing broke |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return [*head, *rows] if rows else []


def _drifts(summaries: Sequence[Summary]) -> list[str]:
    rows = [
        f"| {s['model']} | {d['timestep']:g} | {d['dtype']} | {interval(d['drift'], 2, True)} | "
        f"{largest_words(d)} | {'–' if d['scatter'] is None else format(d['scatter'], '.3f')} | "
        f"{broke_words(d)} |"
        for s in summaries
        for d in s["drift"]
    ]
    head = (
        "| constant energy | fs | precision | drift, meV/atom/ps | largest of a molecule | "
        "scatter, meV/atom | broke |"
    )
    return [head, "|---|---|---|---|---|---|---|", *rows, "", DRIFT] if rows else []


def _structure(summaries: Sequence[Summary]) -> list[str]:
    rows = []
    for s in summaries:
        for found in s["structure"]:
            e, noise = found["errors"], found["noise"]
            if e is None:
                continue
            dihedral = "–" if e["dihedral_distance"] is None else f"{e['dihedral_distance']:.3f}"
            rows.append(
                f"| {found['source']} | {s['model']} | {e['hr_mae']:.3f} ({noise['hr_mae']:.3f}) | "
                f"{e['bond_shift']:.4f} | {e['bond_distance']:.4f} | {dihedral} |"
            )
    head = (
        "| structure against | model | h(r) error (two halves of the reference) | bond means, Å | "
        "bond lengths, Wasserstein, Å | dihedrals, Jensen-Shannon |"
    )
    return [head, "|---|---|---|---|---|---|", *rows] if rows else []


def _accuracy(summaries: Sequence[Summary]) -> list[str]:
    rows = []
    for s in summaries:
        for a in s["accuracy"]:
            names = ("energy_mae", "energy_rmse", "force_mae", "force_rmse")
            cells = ["–" if a[k] is None else f"{a[k]:.1f}" for k in names]
            rows.append(f"| {a['name']} | {s['model']} | {a['frames']} | {' | '.join(cells)} |")
    head = "| errors | model | frames | E MAE, meV | E RMSE | F MAE, meV/Å | F RMSE |"
    note = [
        "",
        "Energies less their mean difference: reference energies of levels of theory differ.",
    ]
    return [head, "|---|---|---|---|---|---|---|", *rows, *note] if rows else []


def _goals(summary: Summary) -> list[str]:
    words = {True: "yes", False: "no", None: "not decided by so few"}
    rows = []
    for g in summary["goals"]:
        value, met = "–", "not measured"
        if g["value"] is not None:
            value, met = f"{100 * g['value']:.3g} (of {g['runs']})", words[g["met"]]
        rows.append(f"| {g['text']} | {100 * g['limit']:g} | {value} | {met} |")
    return [f"| goal ({summary['model']}) | %, at least | % | met |", "|---|---|---|---|", *rows]


def _left_out(summaries: Sequence[Summary]) -> list[str]:
    told = []
    for s in summaries:
        told += [f"- {s['model']}, left out: {what} ({why})" for what, why in s["skipped"].items()]
        told += [f"- {s['model']}, failed: {why}" for why in sorted(set(s["failed"].values()))]
        told += [f"- {s['model']}, {what} ({why})" for what, why in judged_otherwise(s)]
        if s["missing"]:
            told.append(f"- {s['model']}: {s['missing']} runs are still to be done")
    return told
