"""Energy and temperature over time, as a picture."""

from pathlib import Path

import numpy as np


def plot_log(log: str | Path, out: str | Path) -> None:
    """Draw ``log.csv`` of a run: energies (eV, from their first value) and temperature (K).

    Args:
        log: CSV file that `mlpot.md.simulate` wrote.
        out: PNG file.
    """
    # The figure is made without pyplot: no window system, and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    data = np.atleast_1d(np.genfromtxt(log, delimiter=",", names=True))
    time = data["time_ps"]
    figure = Figure(figsize=(7.0, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    energy, temperature = figure.subplots(2, 1, sharex=True)
    for column, label in (("potential_eV", "potential"), ("total_eV", "total")):
        energy.plot(time, data[column] - data[column][0], lw=1.2, label=label)
    energy.set_ylabel("energy − start (eV)")
    energy.legend(loc="best", ncols=2)
    temperature.plot(time, data["temperature_K"], lw=1.2, color="tab:red")
    half = data["temperature_K"][len(time) // 2 :]
    mean = float(half.mean())
    label = f"mean of the second half: {mean:.0f} K"
    temperature.axhline(mean, lw=1.0, ls="--", color="0.4", label=label)
    temperature.legend(loc="best")
    temperature.set_ylabel("temperature (K)")
    temperature.set_xlabel("time (ps)")
    temperature.set_ylim(bottom=0)
    for axes in (energy, temperature):
        axes.grid(alpha=0.3)
        axes.margins(x=0)
    figure.savefig(out, dpi=150)
