"""Stable time and error against temperature, a column for each number of frames."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.headline.settings import DENOISED, NOTHING, PRETRAINED
from benchmarks.headline.statistics import (
    RESOLUTION,
    Estimate,
    errors,
    mean_error,
    median_time,
    sizes,
    stable_times,
)
from mlpot.analysis.records import Json

STYLES = {
    NOTHING: {"color": "tab:gray", "marker": "s"},
    DENOISED: {"color": "tab:orange", "marker": "D"},
    PRETRAINED: {"color": "tab:blue", "marker": "o"},
}


def plot(result: Json, path: Path) -> None:
    """Markers are medians (times) and means (errors), bars 95 % intervals; open markers: the
    median run was whole to its end."""
    from matplotlib.figure import Figure

    columns = sizes(result)
    figure = Figure(figsize=(1.5 + 3.0 * len(columns), 5.5), layout="constrained")
    axes = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
    end = result["settings"]["picoseconds"]
    for column, frames in enumerate(columns):
        top, bottom = axes[:, column]
        for shift, (start, style) in enumerate(STYLES.items()):
            aside = 12.0 * (shift - 1)  # K, so that bars do not cover each other
            _line(top, aside, _times(result, frames, start, end), start, style)
            _line(bottom, aside, _force_errors(result, frames, start), start, style)
        top.axhline(end, color="black", lw=0.8, ls=":")
        top.set(title=f"{frames} frames", yscale="log", ylim=(0.5 * RESOLUTION, 2 * end))
        bottom.set(xlabel="K", yscale="log")
        for each in (top, bottom):
            each.grid(alpha=0.3, which="both")
    axes[0, 0].set_ylabel("median stable time, ps")
    axes[1, 0].set_ylabel("forces MAE, meV/Å")
    axes[0, 0].legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


Points = dict[float, Estimate]


def _times(result: Json, frames: int, start: str, end: float) -> Points:
    found = {
        t: median_time(stable_times(result, frames, start, t), end)
        for t in result["settings"]["temperatures"]
    }
    return {t: e for t, e in found.items() if e is not None}


def _force_errors(result: Json, frames: int, start: str) -> Points:
    kelvins = sorted({float(t) for m in result["molecules"].values() for t in m["tested"]})
    found = {t: mean_error(errors(result, frames, start, t, "force_mae")) for t in kelvins}
    return {t: e for t, e in found.items() if e is not None}


def _line(axes: Any, aside: float, points: Points, label: str, style: dict[str, Any]) -> None:
    if not points:
        return
    at = np.array(list(points)) + aside
    value, low, high = (
        np.maximum([getattr(e, name) for e in points.values()], RESOLUTION)
        for name in ("value", "low", "high")
    )
    bars = np.maximum(np.stack([value - low, high - value]), 0.0)
    axes.errorbar(at, value, bars, label=label, lw=1.2, capsize=2, ms=5, **style)
    whole = [e.bound == ">=" for e in points.values()]
    axes.plot(at[whole], value[whole], ls="", mfc="white", ms=5, zorder=3, **style)
