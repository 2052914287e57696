"""What a report is made of: each suite with its label, and the words for groups and intervals."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlpot.analysis.records import Folder, Json, Suite, read_trajectory
from mlpot.analysis.summary import analyze
from mlpot.errors import DataError, InputError


@dataclass(frozen=True, eq=False)
class Side:
    """One suite of those that a report sets side by side.

    Attributes:
        label: name of the model, with that of the folder where two have one name.
        folder, suite, summary: of `mlpot.analysis.records` and `mlpot.analysis.summary`.
        records: key -> record of the suite, those of older suites in the folder left out.
    """

    label: str
    folder: Folder
    suite: Suite
    summary: Json
    records: dict[str, Json]

    def runs(self, **wanted: object) -> list[Json]:
        """Lines of ``summary["runs"]`` whose values are those."""
        return [r for r in self.summary["runs"] if all(r[k] == v for k, v in wanted.items())]

    def sound_frames(self, line: Json) -> int:
        """Frames of a run before it broke; all of them where it did not."""
        record = self.records[line["key"]]
        times = np.arange(len(record["temperatures"])) * record["interval"] / 1000
        return int(np.searchsorted(times, line["stable_ps"])) if line["broke"] else len(times)

    def positions(self, line: Json) -> NDArray[np.float32]:
        """[F, N, 3] Å"""
        return read_trajectory(self.folder.trajectory(line["id"]))

    def bonds(self, molecule: str) -> NDArray[np.int64]:
        """[B, 2]"""
        found = self.suite.molecules[molecule]["bonds"]
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    def numbers(self, molecule: str) -> NDArray[np.int64]:
        """[N]"""
        return np.array(self.suite.molecules[molecule]["numbers"], dtype=np.int64)


def read_sides(paths: Sequence[str | Path]) -> list[Side]:
    """Sum up each folder anew, which a suite that is still running allows.

    Raises:
        InputError: no folder, or one folder twice.
        DataError: a folder that holds no suite, one of another version, or one without runs.
    """
    folders = [Folder(path) for path in paths]
    places = Counter(folder.path.resolve() for folder in folders)
    if not folders or max(places.values()) > 1:
        raise InputError("a report needs one or more folders of `mlpot stability`, each once")
    suites = [folder.suite() for folder in folders]
    labels = _labels(folders, suites)
    return [_side(*of) for of in zip(labels, folders, suites, strict=True)]


def _side(label: str, folder: Folder, suite: Suite) -> Side:
    if folder.records_of(suite).keys().isdisjoint(suite.runs):
        raise DataError(
            f"{folder.path} has no finished run to report. Wait for one, or give the command "
            "of `mlpot stability` again"
        )
    try:
        summary = analyze(folder.path)
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{folder.records_file} does not hold what this mlpot expects "
            f"({type(error).__name__}: {error}). Run the suite again, in another folder"
        ) from error
    # read last: a run that has ended since is no line of the summary, and the other way round one
    # would lack its record
    return Side(label, folder, suite, summary, folder.records_of(suite))


def _labels(folders: Sequence[Folder], suites: Sequence[Suite]) -> list[str]:
    """The shortest kind of name that tells all apart."""
    models = [suite.model for suite in suites]
    named = [f"{s.model} ({f.path.resolve().name})" for f, s in zip(folders, suites, strict=True)]
    counted = [f"{name} #{i}" for i, name in enumerate(named, start=1)]
    return next(names for names in (models, named, counted) if len(set(names)) == len(names))


# --- words ---------------------------------------------------------------------------------------


def condition(group: Json) -> str:
    """Of a group or a run: 300 K to 3000 K, 0.5 fs."""
    text = f"{group['temperature']:g} K"
    if group.get("end_temperature") is not None:
        text += f" to {group['end_temperature']:g} K"
    if group.get("ensemble", "nvt") == "nve":
        text += f", {group['timestep']:g} fs"
    return text + (f", start off by {group['distortion']:g} Å" if group["distortion"] else "")


def group_name(group: Json) -> str:
    return f"{group['scenario']} {condition(group)}"


def interval(values: Sequence[float | None] | None, form: str = "{:.3g}") -> str:
    """Value (low to high); the value alone where the interval is a point or has no bounds."""
    if values is None or values[0] is None:
        return "–"
    low, high = values[1:]
    if low is None or high is None or low == high:
        return form.format(values[0])
    return f"{form.format(values[0])} ({form.format(low)} to {form.format(high)})"
