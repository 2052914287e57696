"""Energy and temperature of several replicas over time, as a picture."""

from pathlib import Path

import numpy as np


def plot_replicas(log: str | Path, out: str | Path) -> None:
    """Draw ``log.csv`` of a run of replicas: each a thin line, their mean a thick one.

    Args:
        log: CSV file that `mlpot.md.replica_run` wrote.
        out: PNG file.
    """
    # The figure is made without pyplot: no window system, and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    data = np.atleast_1d(np.genfromtxt(log, delimiter=",", names=True))
    replicas = [data[data["replica"] == r] for r in np.unique(data["replica"])]
    figure = Figure(figsize=(7.0, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {"potential_eV": "potential energy − start (eV)", "temperature_K": "temperature (K)"}
    for axes, (column, label) in zip(
        figure.subplots(len(panels), 1, sharex=True), panels.items(), strict=True
    ):
        lines = [(rows["time_ps"], rows[column]) for rows in replicas]
        if column == "potential_eV":
            lines = [(time, values - values[0]) for time, values in lines]
        for time, values in lines:
            axes.plot(time, values, lw=0.6, color="0.6", alpha=0.6)
        # of those that have run longest: a mean that loses a member jumps
        longest = max((time for time, _ in lines), key=len)
        mean = np.mean([v for time, v in lines if len(time) == len(longest)], axis=0)
        axes.plot(longest, mean, lw=1.8, color="tab:red", label=f"mean of {len(lines)} replicas")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.margins(x=0)
    axes.set_xlabel("time (ps)")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best")
    figure.savefig(out, dpi=150)
