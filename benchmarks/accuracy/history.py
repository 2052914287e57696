"""The folders of training runs as numbers: validation errors against steps and hours.

Hours come from the TensorBoard log, the only one that knows the time. A run that was cut off and
went on has several logs; time between them does not count.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from experiment import table  # this folder is where the script runs

from mlpot.errors import DataError

LABELLED = "energies and forces"  # what stages of training with labels are called

#: model of the zoo -> commit that brought weights -> cycles with labels until then
SHIPPED_CYCLES = {
    "pretrained-visnet": {"c4d05ee": 1, "36960c6": 3, "1458007": 4},
    "pretrained-visnet-small": {"bdb5a48": 1},
}


def read_stage(folder: Path) -> dict[str, Any]:
    """Seed, threads, steps, hours and validation history of `mlpot pretrain` or `mlpot finetune`.

    Raises:
        DataError: the run has not come to its end.
    """
    if not (folder / "history.json").is_file():
        raise DataError(f"{folder} has no history.json: the run has not come to its end. Go on")
    history = json.loads((folder / "history.json").read_text())
    loop = json.loads((folder / "config.json").read_text())["recipe"]["loop"]
    clock = hours_by_step(folder)
    for row in history:
        row["hours"] = hours_at(clock, row["step"])
    return {
        **{key: loop[key] for key in ("seed", "threads", "steps", "batch_atoms", "learning_rate")},
        "hours": clock[-1][1] if clock else None,
        "history": history,
    }


def hours_by_step(folder: Path) -> list[tuple[int, float]]:
    """(step, hours of training until then), ascending; empty without a log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = []
    for version in (folder / "tensorboard").glob("version_*"):
        log = EventAccumulator(str(version), size_guidance={"scalars": 0}).Reload()
        events = [e for tag in log.Tags()["scalars"] for e in log.Scalars(tag)]
        if events:
            logs.append(sorted((e.wall_time, e.step) for e in events))
    clock: list[tuple[int, float]] = []
    for log in sorted(logs):
        begin, first = log[0]
        # of the steps before the cut, some are done again: count them where they first were
        known = [row for row in clock if row[0] < first]
        before = known[-1][1] if known else 0.0
        clock = known + [(step, before + (wall - begin) / 3600) for wall, step in log]
    return clock


def hours_at(clock: list[tuple[int, float]], step: float) -> float | None:
    """When a step was reached; events carry the index of the last step, one less than its count."""
    reached = [hours for at, hours in clock if at >= step - 1]
    return min(reached) if reached else None


def labelled_history(stages: dict[str, Any]) -> list[dict[str, Any]]:
    """Validation errors of all stages with labels, one after the other."""
    rows: list[dict[str, Any]] = []
    for name, stage in stages.items():
        if name.startswith(LABELLED):
            step, hours = (rows[-1][k] or 0 for k in ("step", "hours")) if rows else (0, 0)
            told = [
                {**h, "step": step + h["step"], "hours": h["hours"] and hours + h["hours"]}
                for h in stage["history"]
            ]
            rows += told
    return rows


def learning_curve(stages: dict[str, Any], rows: int = 12) -> str:
    """Validation errors against steps and hours, in about so many rows."""
    history = labelled_history(stages)
    at = sorted(set(np.linspace(0, len(history) - 1, min(rows, len(history))).round().astype(int)))
    lines = [
        [
            f"{h['step']:,.0f}",
            "-" if h["hours"] is None else f"{h['hours']:.2f}",
            *(f"{1e3 * h[k]:.1f}" for k in ("force_mae", "force_rmse")),
            *(f"{1e3 * h[k]:.2f}" for k in ("energy_mae", "energy_rmse")),
        ]
        for h in (history[i] for i in at)
    ]
    header = ["steps", "hours", "F MAE", "F RMSE", "E MAE", "E RMSE"]
    return (
        "Molecules held out for validation, while training on energies and forces (meV/Å, "
        f"meV/atom):\n\n{table(header, lines)}"
    )


def gains(stages: dict[str, Any]) -> str:
    """What every further cycle of the learning rate has gained."""
    cycles = [stage for name, stage in stages.items() if name.startswith(LABELLED)]
    errors = [min(h["force_mae"] for h in stage["history"]) for stage in cycles]
    told = [
        f"cycle {i + 2} {100 * (1 - after / before):.1f} %"
        + (f" in {stage['hours']:.1f} h" if stage["hours"] is not None else "")
        for i, (before, after, stage) in enumerate(
            zip(errors, errors[1:], cycles[1:], strict=False)
        )
    ]
    if not told:
        return "One cycle of the learning rate; what another would gain was not tried."
    return f"Smaller forces MAE, against the cycle before: {', '.join(told)}."


def gains_today(cycles: dict[str, Any], after: dict[str, int]) -> str:
    """The same of weights in the history, all on the validation molecules of today.

    Args:
        cycles: errors by commit.
        after: commit -> after which cycle, ascending; see `SHIPPED_CYCLES`.
    """
    rows = [(n, c, e) for c, n in after.items() if (e := cycles.get("commits", {}).get(c))]
    if len(rows) < 2:
        return ""
    told = [f"cycle {n} {e['force_mae']:.1f} ({commit})" for n, commit, e in rows]
    gains = [
        f"{100 * (1 - late['force_mae'] / early['force_mae']):.1f} % from cycle {m} to {n}"
        for (m, _, early), (n, _, late) in itertools.pairwise(rows)
    ]
    return (
        f"On the {rows[0][2]['frames']:,} frames of validation that are left today, forces MAE in "
        f"meV/Å after {', '.join(told)}: {', '.join(gains)}."
    )


def plot_learning_curve(stages: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    history = labelled_history(stages)
    figure = Figure(figsize=(6, 3.5))
    axes = figure.subplots()
    steps = [h["step"] for h in history]
    for key, label in (("force_mae", "forces MAE, meV/Å"), ("energy_mae", "energy MAE, meV/atom")):
        axes.plot(steps, [1e3 * h[key] for h in history], ".-", label=label)
    axes.set(xlabel="steps", yscale="log")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, which="both")
    return figure
