"""Tables of a report: rows of text."""

from collections.abc import Sequence
from dataclasses import replace

from mlpot.analysis.records import Json
from mlpot.analysis.report_data import Side, group_name, interval
from mlpot.analysis.report_frames import worst_run
from mlpot.analysis.report_page import Table
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
    unfinished,
    what_broke,
)

Row = tuple[str, ...]


def stability_table(sides: Sequence[Side]) -> Table:
    """Groups in the order of the first model that has them, models side by side."""
    rows: dict[tuple[str, str], list[tuple[str, Json]]] = {}
    for side in sides:
        for g in side.summary["groups"]:
            key = (group_name(g), f"{g['picoseconds']:g}")
            rows.setdefault(key, []).append((side.label, g))
    uneven = any(len({frozenset(g["molecules"]) for _, g in found}) > 1 for found in rows.values())
    others = " Models were not run on the same molecules everywhere: see what was left out."
    starts = [f" {side.label}, {words}." for side in sides for words in start_words(side.summary)]
    columns = ("simulation", "ps", "model", "whole", "share, %", "stable time, ps")
    rules = ("bonds hold, ps", "H lost", "exploded")
    return Table(
        "How long simulations stay whole, with 95 % intervals",
        (*columns, *rules, "broken by"),
        [
            (name, ps, label, *_group_cells(g))
            for (name, ps), found in rows.items()
            for label, g in found
        ],
        "".join([INTERVALS, f" {RULES}", *starts, others if uneven else ""]),
        prose=True,
    )


def _group_cells(g: Json) -> tuple[str, ...]:
    causes = ", ".join(f"{cause} {count}" for cause, count in g["causes"].items())
    share = interval([None if v is None else 100 * v for v in g["fraction"]])
    times = (marked(interval(g[name]), g, name) for name in ("stable_ps", "bond_ps"))
    counts = (str(g[name]) for name in ("lost_hydrogen", "exploded"))
    return f"{g['sound']} of {g['runs']}", share, *times, *counts, causes or "–"


def molecule_table(sides: Sequence[Side]) -> Table:
    """Every molecule of any model: what came of its runs, and of the worst of them."""
    names = {name: m for side in reversed(sides) for name, m in side.suite.molecules.items()}
    rows = []
    for name, molecule in names.items():
        for side in sides:
            told = (name, molecule["set"], str(len(molecule["numbers"])), side.label)
            rows.append((*told, *_molecule_cells(side, name), molecule["smiles"] or "–"))
    columns = ("molecule", "set", "atoms", "model", "whole", "worst run", "largest departure, Å")
    return Table("Molecules", (*columns, "SMILES"), rows, prose=True)


def _molecule_cells(side: Side, name: str) -> tuple[str, str, str]:
    runs, worst = side.runs(molecule=name), worst_run(side, name)
    if worst is None:
        return "not run", "–", "–"
    whole = sum(not run["broke"] for run in runs)
    what = group_name(side.records[worst["key"]])
    if worst["broke"]:
        what += f": {worst['stable_ps']:.3g} ps, {what_broke(worst)}"
    departure = f"{worst['worst_departure']:.2f} ({worst['worst_bond'] or 'no bond'})"
    return f"{whole} of {len(runs)}", what, departure


def _adjacent(rows: Sequence[Row]) -> list[Row]:
    """Models side by side: rows of one name together, in the order of the first of them."""
    names = list(dict.fromkeys(row[0] for row in rows))
    return sorted(rows, key=lambda row: names.index(row[0]))


def of_one_model(table: Table) -> Table:
    """Without the column that says which model, as there is one only."""
    if "model" not in table.columns:
        return table
    at = list(table.columns).index("model")
    rows = [[*row[:at], *row[at + 1 :]] for row in table.rows]
    return replace(table, columns=[*table.columns[:at], *table.columns[at + 1 :]], rows=rows)


def ramp_table(sides: Sequence[Side]) -> Table | None:
    rows = [
        (
            f"{r['from']:g} to {r['to']:g} K in {r['picoseconds']:g} ps",
            side.label,
            f"{len(r['broke'])} of {r['runs']}",
            median_words(r),
            f"{100 * r['completed']:.0f}",
        )
        for side in sides
        for r in side.summary["ramp"]
    ]
    columns = ("heated", "model", "broke", "median, K", "of the way, %")
    title = "Temperature at which runs broke"
    return Table(title, columns, _adjacent(rows), MEDIAN) if rows else None


def drift_table(sides: Sequence[Side]) -> Table | None:
    rows = [
        (
            f"{d['timestep']:g} fs, {d['temperature']:g} K, {d['picoseconds']:g} ps",
            side.label,
            d["dtype"],
            interval(d["drift"], "{:+.3g}"),
            largest_words(d),
            "–" if d["scatter"] is None else f"{d['scatter']:.3f}",
            broke_words(d),
        )
        for side in sides
        for d in side.summary["drift"]
    ]
    columns = (
        "simulation",
        "model",
        "precision",
        "drift, meV/atom/ps",
        "largest of a molecule",
        "scatter, meV/atom",
        "broke",
    )
    title = "Constant energy, with 95 % intervals"
    return Table(title, columns, _adjacent(rows), DRIFT) if rows else None


def structure_table(sides: Sequence[Side]) -> Table | None:
    rows = []
    for side in sides:
        for s in side.summary["structure"]:
            names = ("hr_mae", "bond_shift", "bond_distance", "dihedral_distance")
            cells = [_beside(s["errors"], s["noise"], name) for name in names]
            rows.append((f"{s['molecule']}, {s['source']}", side.label, *cells))
    columns = (
        "molecule, reference",
        "model",
        "h(r)",
        "bond means, Å",
        "bond lengths, Å",
        "dihedrals",
    )
    note = (
        "h(r): mean absolute error, 0 to 2. Bond lengths: Wasserstein distance. Dihedrals: "
        "Jensen-Shannon distance, 0 to 1. In brackets: one half of the reference against the "
        "other, which no model can be asked to beat."
    )
    return Table("Distance from the reference", columns, _adjacent(rows), note) if rows else None


def _beside(errors: Json | None, noise: Json | None, name: str) -> str:
    if errors is None or errors[name] is None:
        return "–"
    bracket = f" ({noise[name]:.4f})" if noise and noise[name] is not None else ""
    return f"{errors[name]:.4f}{bracket}"


def accuracy_table(sides: Sequence[Side]) -> Table | None:
    rows = []
    for side in sides:
        for a in side.summary["accuracy"]:
            found = [a[k] for k in ("energy_mae", "energy_rmse", "force_mae", "force_rmse")]
            cells = ["–" if value is None else f"{value:.1f}" for value in found]
            rows.append((a["name"], side.label, a["level"] or "–", str(a["frames"]), *cells))
    columns = ("set", "model", "level", "frames", "E MAE, meV", "E RMSE", "F MAE, meV/Å", "F RMSE")
    note = "Energies of whole structures, less their mean difference within each composition."
    return Table("Errors on labelled frames", columns, _adjacent(rows), note) if rows else None


def left_out_table(sides: Sequence[Side]) -> Table | None:
    """Skipped, failed, not judged, and not done yet."""
    rows = []
    for side in sides:
        s = side.summary
        rows += [(what, side.label, why) for what, why in s["skipped"].items()]
        rows += [("failed", side.label, why) for why in sorted(set(s["failed"].values()))]
        rows += [(what, side.label, why) for what, why in judged_otherwise(s)]
        if s["missing"]:
            again = unfinished(s)
            rows.append(("unfinished", side.label, f"{s['missing']} runs to be done; {again}"))
    title = "Not run, or not judged as the others"
    return Table(title, ("what", "model", "why"), rows, prose=True) if rows else None


def refusal_table(sides: Sequence[Side]) -> Table | None:
    words = {True: "yes", False: "NO", None: "covered"}
    rows = [
        (
            f"{r['molecule']} ({', '.join(r['elements'])})",
            side.label,
            words[r["refused"]],
            r["message"] or "–",
        )
        for side in sides
        for r in side.summary["refusals"]
    ]
    columns = ("molecule", "model", "refused", "message")
    title = "Elements that a model does not cover, refused before the first step"
    return Table(title, columns, _adjacent(rows), prose=True) if rows else None


def provenance_table(sides: Sequence[Side], written_by: str) -> Table:
    """One column a model."""
    columns: list[dict[str, str]] = []
    for side in sides:
        runs = [r for r in side.records.values() if r["kind"] == "run"]
        engines = sorted({f"{r['engine']}, {r['dtype']}" for r in runs})
        suite = side.suite
        columns.append(
            {
                "identity (hash, precision)": suite.identity,
                "mode": suite.mode,
                "engine": "; ".join(engines),
                **{name: str(value) for name, value in suite.machine.items()},
                "core-hours": f"{side.summary['core_hours']['total']:.3g}",
                "layout": str(suite.version),
                "command": suite.machine.get("command", "not recorded"),
            }
        )
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, *(column.get(name, "–") for column in columns)) for name in names]
    rows.append(("this page", *(written_by for _ in sides)))
    return Table("What was run, and where", ("", *(side.label for side in sides)), rows, prose=True)
