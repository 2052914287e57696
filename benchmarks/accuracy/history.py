"""The folder of a training run as numbers: its validation errors against steps and hours.

Hours come from the TensorBoard log, the only one that knows the time. A run that was cut off and
went on has several logs; time between them does not count.
"""

import json
from pathlib import Path
from typing import Any

from mlpot.errors import DataError


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
