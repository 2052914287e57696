"""mlpot evaluate: errors of a model on labelled structures."""

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlpot.cli.common import (
    EnergyKey,
    ForcesKey,
    Units,
    aside,
    console,
    counted,
    read_data,
    say,
)
from mlpot.cli.labelled import check_labelled

if TYPE_CHECKING:
    from mlpot.data.record import Record
    from mlpot.deploy.engines import DeployedModel
    from mlpot.train.losses import Errors

#: eV per atom; no model of the same level of theory is that wrong on average
OTHER_LEVEL = 0.3


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Name of a model, a .safetensors, .pt or .pt2 file.")
    ],
    data: Annotated[list[Path], typer.Argument(help="Files of labelled structures.")],
    out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT.json", help="Write the numbers here too.")
    ] = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    units: Units = None,
) -> None:
    """Compare a model with energies and forces that you trust: MAE and RMSE."""
    from mlpot.deploy.load import load
    from mlpot.models.checkpoint import build

    loaded = load(model)
    records = read_data(data, energy_key=energy_key, forces_key=forces_key, units=units)
    check_labelled(records, loaded)
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.subset, []).append(record)
    start = time.perf_counter()
    rows = {name: (part, _errors(loaded, part)) for name, part in groups.items()}
    seconds = time.perf_counter() - start
    total = _total(list(rows.values()))
    parameters = sum(p.numel() for p in build(loaded.info).parameters())
    _show(rows, total, len(records))
    if total.energy_mae > OTHER_LEVEL:
        aside(
            f"note: energies are off by {total.energy_mae:.1f} eV per atom, so these labels are of "
            "another level of theory than the model's; compare forces, or fine-tune first"
        )
    rate = len(records) / seconds
    say(
        f"{loaded.info.name}: {counted(parameters, 'parameter')}, labels from {loaded.info.level}; "
        f"{rate:.1f} frames/s on {loaded.device}"
    )
    if out is not None:
        numbers = {
            "model": loaded.info.name,
            "data": [str(path) for path in data],
            "units": {"energy": "eV/atom", "force": "eV/Å per component"},
            "parameters": parameters,
            "frames": len(records),
            "frames_per_second": rate,
            "total": _plain(total),
            "subsets": {k: {"frames": len(p), **_plain(e)} for k, (p, e) in rows.items()},
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        say(f"wrote {out}")


def _errors(model: "DeployedModel", records: "list[Record]") -> "Errors":
    from mlpot.train.finetune import measure

    return measure(model.predict, records, model.cutoff, model.dtype, model.device)


def _total(rows: "list[tuple[list[Record], Errors]]") -> "Errors":
    """Errors over all frames from those over parts: every label counts once."""
    from mlpot.train.losses import Errors

    energies = [sum(r.energy is not None for r in part) for part, _ in rows]
    forces = [sum(3 * len(r.numbers) for r in part if r.forces is not None) for part, _ in rows]

    def mean(values: list[float], weights: list[int]) -> float:
        whole = sum(weights)
        pairs = zip(values, weights, strict=True)
        return sum(v * w for v, w in pairs if w) / whole if whole else math.nan

    parts = [errors for _, errors in rows]
    return Errors(
        mean([e.energy_mae for e in parts], energies),
        math.sqrt(mean([e.energy_rmse**2 for e in parts], energies)),
        mean([e.force_mae for e in parts], forces),
        math.sqrt(mean([e.force_rmse**2 for e in parts], forces)),
    )


def _show(rows: "dict[str, tuple[list[Record], Errors]]", total: "Errors", frames: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("subset", overflow="fold")
    titles = ("frames", "energy MAE", "energy RMSE", "force MAE", "force RMSE")
    units = ("", "meV/atom", "meV/atom", "meV/Å", "meV/Å")
    for title, unit in zip(titles, units, strict=True):
        table.add_column(f"{title}\n{unit}", justify="right")
    for name, (part, errors) in rows.items():
        table.add_row(name, f"{len(part)}", *_cells(errors))
    if len(rows) > 1:
        table.add_section()
        table.add_row("all", f"{frames}", *_cells(total))
    wide = console()
    wide.soft_wrap = False
    wide.print(table)


def _cells(errors: "Errors") -> list[str]:
    return ["–" if math.isnan(e) else f"{1000 * e:.2f}" for e in errors]


def _plain(errors: "Errors") -> dict[str, Any]:
    """NaN is no JSON."""
    return {k: None if math.isnan(v) else v for k, v in errors._asdict().items()}
