"""One page about a suite, or several side by side: a file of HTML that needs nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlpot import __version__
from mlpot.analysis import report_figures as figures
from mlpot.analysis import report_tables as tables
from mlpot.analysis.report_data import Side, read_sides
from mlpot.analysis.report_frames import worst_frames
from mlpot.analysis.report_page import Figure, Section, Table, Viewer, page
from mlpot.analysis.report_structure import structure_figures
from mlpot.errors import InputError
from mlpot.models.checkpoint import write_atomically

Part = Figure | Table | Viewer


def write_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Sum up folders of `mlpot stability` in one HTML file of about 5 MB, most of it plotly.js.

    Args:
        folders: one or more; models are compared in the same figures and tables.
        out: the file, replaced if it is there.

    Raises:
        InputError: no folder, one twice, or a file that browsers would not take for a page.
        DataError: a folder without results, or results of another version.
        MissingDependencyError: plotly is not installed.
    """
    out = Path(out)
    if out.suffix not in (".html", ".htm"):
        raise InputError(f"the report must be a file ending in .html, got {out}")
    text = make_page(read_sides(folders))
    write_atomically(out, text.encode())
    return out


def make_page(sides: Sequence[Side]) -> str:
    """The text of the page."""
    title = f"Stability of {', '.join(side.label for side in sides)}"
    shown = sections(sides)
    if len(sides) == 1:
        shown = [replace(section, parts=[_alone(p) for p in section.parts]) for section in shown]
    return page(title, [_lead(side) for side in sides], shown)


def sections(sides: Sequence[Side]) -> list[Section]:
    frames = worst_frames(sides)
    text = [
        "Kaplan-Meier estimates with pointwise 95 % intervals. Runs that were whole at their end "
        "count as watched until then. Where no run broke the band has no width, and the interval "
        "of the share in the table above says how little that may mean."
    ]
    curves = figures.survival_figures(sides)
    return [
        Section("Stability", [tables.stability_table(sides)], [_rules(sides[0])]),
        Section("Survival", curves, text if curves else ()),
        Section("Temperature", figures.ladder_figures(sides)),
        Section("Heating", _parts(tables.ramp_table(sides), *figures.ramp_figures(sides))),
        Section("Constant energy", _parts(
            tables.drift_table(sides),
            *figures.drift_figures(sides), *figures.energy_figures(sides),
        )),
        Section("Structure", _parts(tables.structure_table(sides), *structure_figures(sides))),
        Section("Accuracy", _parts(
            tables.accuracy_table(sides),
            *figures.parity_figures(sides), *figures.scan_figures(sides),
        )),
        Section("Molecules", _parts(frames, tables.molecule_table(sides))),
        Section("Left out and refused", _parts(
            tables.left_out_table(sides), tables.refusal_table(sides),
        )),
        Section("Provenance", [tables.provenance_table(sides, f"mlpot {__version__}")]),
    ]  # fmt: skip


def _alone(part: Part) -> Part:
    return tables.of_one_model(part) if isinstance(part, Table) else part


def _parts(*parts: Part | None) -> list[Part]:
    return [part for part in parts if part is not None]


def _lead(side: Side) -> str:
    runs = side.summary["runs"]
    whole = sum(not run["broke"] for run in runs)
    molecules = len({run["molecule"] for run in runs})
    return (
        f"{side.label}: {whole} of {len(runs)} simulations of {molecules} molecules stayed whole "
        f"(mode {side.suite.mode}, {side.summary['core_hours']['total']:.3g} core-hours)."
    )


def _rules(side: Side) -> str:
    rules = side.summary["rules"]
    return (
        f"A run is whole until a bond is {rules['bond_departure_A']:g} Å off its mean at "
        f"{rules['reference_K']:g} K (or in the reference trajectory, for a molecule that has "
        f"one), a hydrogen is more than {rules['lost_hydrogen_A']:g} Å from every heavy atom and "
        f"stays so, the motion is {rules['explosion_K']:g} K hotter than the thermostat or "
        f"{rules['explosion_jump']:g} times hotter than a frame before, or a number is no longer "
        "finite. Runs that their calculator ended with an error are not counted, but listed among "
        "what failed."
    )
