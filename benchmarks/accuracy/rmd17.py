"""What a pretrained model is worth: rMD17 aspirin from few frames, against other starts.

    python benchmarks/accuracy/rmd17.py run --denoised runs/denoise/model.safetensors
    python benchmarks/accuracy/rmd17.py render                  # results/rmd17.md and .png

Same architecture, frames, steps and batches for every start; of each, the better of two learning
rates, judged by the validation frames. Those are part of the few: "50 frames" are 40 to train on
and 10 to judge by. All are tested on the same 500 frames.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer
from experiment import (  # this folder is where the script runs
    DATA,
    ROOT,
    SHIPPED,
    begun,
    empty_folder,
    fill,
    made_at,
    millis,
    of_model,
    quiet,
    save_plot,
    store,
    stored,
    table,
    with_spread,
    write_page,
)

from mlpot.data.formats import read
from mlpot.data.record import Record
from mlpot.errors import InputError
from mlpot.models.checkpoint import ModelInfo, load, load_potential
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.finetune import FinetuneConfig, FinetuneLoop, evaluate, finetune
from mlpot.train.loop import quiet as quiet_lightning
from mlpot.zoo import resolve

NAME = "rmd17"
FILE = "rmd17_aspirin_train.xyz.gz"
LEVEL = "PBE/def2-SVP"
NOTHING, DENOISED, PRETRAINED = "nothing", "denoised backbone", "pretrained"
#: number of frames -> seeds; the fewer frames, the more it matters which
FRAMES = {50: 3, 200: 1}
#: the same with AdamW: results of `run` that were put aside under this name
OTHER = "rmd17-adamw"
START, END = "<!-- few frames: generated -->", "<!-- end -->"
GOAL = 3.0  # error from nothing over error from the pretrained model
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Case(NamedTuple):
    """One run."""

    start: str
    frames: int
    seed: int
    learning_rate: float

    @property
    def key(self) -> str:
        return f"{self.start} | {self.frames} | {self.seed} | {self.learning_rate:g}"


class Starts(NamedTuple):
    """Model files of the three starts, and the description of the pretrained model."""

    files: dict[str, Path | None]
    info: ModelInfo


def read_starts(model: str, denoised: str) -> Starts:
    """Raises InputError: the denoised backbone is of another architecture."""
    path = resolve(model)
    info = load_potential(path)[1]
    files: dict[str, Path | None] = {NOTHING: None, PRETRAINED: path}
    if denoised:
        other = load(denoised)[1]
        if other.kind != "denoiser" or _shape(other) != _shape(info):
            raise InputError(
                f"{denoised} is not a denoised backbone of the architecture of {info.name}; give "
                "the one that it was trained from"
            )
        files[DENOISED] = Path(denoised)
    return Starts(files, info)


def _shape(info: ModelInfo) -> ViSNetConfig:
    return ViSNetConfig(**info.config)


def parts(records: Sequence[Record], test: int) -> tuple[list[Record], list[Record]]:
    """Frames to test on, always the same, and those to learn from."""
    order = np.random.default_rng(17).permutation(len(records))
    return [records[i] for i in order[:test]], [records[i] for i in order[test:]]


def recipe(case: Case, info: ModelInfo, settings: dict[str, Any]) -> FinetuneConfig:
    return FinetuneConfig(
        name=case.key,
        level=LEVEL,
        validation=max(2, min(20, case.frames // 5)),
        test=0,
        split_by="frame",
        model=_shape(info),
        prior=info.prior,
        loop=FinetuneLoop(
            steps=settings["steps"],
            batch_atoms=settings["batch_atoms"],
            optimizer=settings["optimizer"],
            learning_rate=case.learning_rate,
            warmup=min(100, settings["steps"] // 5),
            validate_every=-(-settings["steps"] // 20),
            seed=case.seed,
            threads=settings["threads"],
            compile=settings["compile"],
        ),
    )


def trained(
    case: Case, records: Sequence[Record], starts: Starts, settings: dict[str, Any]
) -> dict[str, Any]:
    """One run, tested."""
    test, rest = parts(records, settings["test"])
    chosen = np.random.default_rng(case.seed).permutation(len(rest))[: case.frames]
    folder = empty_folder(NAME, "run")
    begin = time.perf_counter()
    config = recipe(case, starts.info, settings)
    info, errors = finetune(
        [rest[i] for i in chosen], config, folder, starts.files[case.start], False, quiet
    )
    seconds = time.perf_counter() - begin
    model = load_potential(folder / "model.safetensors")[0]
    return {
        **case._asdict(),
        "minutes": seconds / 60,
        "validation_loss": info.provenance["validation"]["loss"],
        "validation_meV": millis(errors._asdict()),
        "test_meV": millis(evaluate(model, test)._asdict()),
    }


def cases(starts: Sequence[str], frames: dict[int, int], rates: Sequence[float]) -> list[Case]:
    return [
        Case(start, count, seed, rate)
        for count, seeds in frames.items()
        for seed in range(seeds)
        for start in starts
        for rate in rates
    ]


RATES = typer.Option([1e-3, 3e-3], help="each start gets the better one")


@app.command()
def run(
    model: str = "pretrained-visnet",
    denoised: str = typer.Option("", help="denoised backbone that the model was trained from"),
    steps: int = 2000,
    optimizer: str = "muon",
    learning_rate: list[float] = RATES,
    batch_atoms: int = 84,
    test: int = 500,
    threads: int = 1,
    compile: str = "yes",
) -> None:
    """Do what is not in the results yet."""
    quiet_lightning()
    starts = read_starts(model, denoised)
    settings = {
        "model": starts.info.name,
        "sha256": starts.info.weights_sha256,
        "steps": steps,
        "optimizer": optimizer,
        "batch_atoms": batch_atoms,
        "test": test,
        "threads": threads,
        "compile": compile,
    }
    name = of_model(NAME, starts.info.name)
    result = begun(name, settings)
    runs = result.setdefault("runs", {})
    records = read(DATA / FILE, level=LEVEL)
    torch.set_num_threads(threads)
    for case in cases(list(starts.files), FRAMES, learning_rate):
        if case.key not in runs:
            runs[case.key] = trained(case, records, starts, settings)
            store(name, result)
            print(f"{case.key}: {runs[case.key]['test_meV']}", flush=True)


@app.command()
def render(model: str = SHIPPED, readme: Path = ROOT / "README.md") -> None:
    """Write results/rmd17.md, rmd17.png and the README's table, which is of the shipped model."""
    name = of_model(NAME, model)
    result = stored(name)
    if model == SHIPPED and not fill(readme, START, block(result), END):
        raise typer.BadParameter(f"{readme.name} has no lines {START!r} and {END!r}")
    page = write_page(name, f"# rMD17 aspirin from few frames\n\n{tables(result)}")
    print(f"wrote {page.name} and {save_plot(plot(result), name).name}")


Best = dict[tuple[int, str], dict[int, dict[str, Any]]]


def best(result: dict[str, Any]) -> Best:
    """(frames, start) -> seed -> the run whose learning rate was better on its validation."""
    found: Best = {}
    for row in result["runs"].values():
        seeds = found.setdefault((row["frames"], row["start"]), {})
        other = seeds.get(row["seed"])
        if other is None or row["validation_loss"] < other["validation_loss"]:
            seeds[row["seed"]] = row
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


def ratios(found: Best, frames: int, start: str, error: str = "force_mae") -> list[float]:
    """Error from nothing over error from this start, for every seed that has both."""
    base, mine = found.get((frames, NOTHING), {}), found[frames, start]
    return [
        base[s]["test_meV"][error] / mine[s]["test_meV"][error] for s in sorted(mine) if s in base
    ]


def tables(result: dict[str, Any]) -> str:
    """Markdown, from the results alone."""
    found, settings = best(result), result["settings"]
    rows = []
    for (frames, start), seeds in found.items():
        told = [
            with_spread([r["test_meV"][name] for r in seeds.values()], digits)
            for name, digits in (
                ("force_mae", 1),
                ("force_rmse", 1),
                ("energy_mae", 2),
                ("energy_rmse", 2),
            )
        ]
        quotient = ratios(found, frames, start)
        rates = ", ".join(f"{r:g}" for r in sorted({r["learning_rate"] for r in seeds.values()}))
        gain = with_spread(quotient, 2) if quotient else "-"
        rows.append([str(frames), start, str(len(seeds)), *told, gain, rates])
    header = "frames | start | seeds | F MAE | F RMSE | E MAE | E RMSE | gain | learning rate"
    return "\n".join(
        [
            f"Errors on {settings['test']} other frames of rMD17 aspirin, {LEVEL} (forces meV/Å,"
            f" energies meV/atom), after {settings['steps']:,} steps ({settings['optimizer']},"
            f" {settings['batch_atoms'] // 21} frames each) from each start; architecture of"
            f" {settings['model']}. A fifth of the frames (at most 20) is validation. Gain: forces"
            " MAE from nothing over this one, same frames. ± is half the range over seeds.",
            "",
            table(header.split(" | "), rows),
            "",
            *[verdict(found, frames) for frames in sorted({n for n, _ in found})],
            *choices(result),
            "",
            made_at(result),
        ]
    )


def choices(result: dict[str, Any]) -> list[str]:
    """Which rates there were to choose from, and what another optimizer gave."""
    rates = sorted({r["learning_rate"] for r in result["runs"].values()})
    told = [
        f"- Learning rates to choose from: {', '.join(f'{r:g}' for r in rates)}; lower and higher "
        "ones were not tried. Seeds draw other frames."
    ]
    mine, other = result["settings"], stored(OTHER)
    theirs = other.get("settings", {})
    if theirs.get("sha256") == mine["sha256"] and theirs["optimizer"] != mine["optimizer"]:
        found = best(other)
        sizes = sorted({frames for frames, _ in found})
        gains = [(n, q) for n in sizes if (q := ratios(found, n, PRETRAINED))]

        def error(frames: int) -> float:
            seeds = found[frames, PRETRAINED].values()
            return float(np.mean([row["test_meV"]["force_mae"] for row in seeds]))

        told.append(
            f"- Also tried, {theirs['optimizer']}, {theirs['batch_atoms'] // 21} frames a step: "
            + ", ".join(
                f"{np.mean(q):.2f} times at {n} frames ({error(n):.1f} meV/Å)" for n, q in gains
            )
            + f"; see `results/{OTHER}.md`."
        )
    return told


def block(result: dict[str, Any]) -> str:
    """For the README: forces alone."""
    found, settings = best(result), result["settings"]
    starts = list(dict.fromkeys(start for _, start in found))
    rows = [
        [str(frames), *(_forces(found.get((frames, start), {})) for start in starts)]
        for frames in sorted({frames for frames, _ in found})
    ]
    return "\n".join(
        [
            f"rMD17 aspirin, {LEVEL}: forces MAE in meV/Å on {settings['test']} other frames, after"
            f" {settings['steps']:,} steps of {settings['batch_atoms'] // 21} frames"
            f" ({settings['optimizer']}, the better of two learning rates) from each start (± half"
            " the range over seeds):",
            "",
            table(["frames", *(f"from {start}" for start in starts)], rows),
            "",
            *[verdict(found, frames) for frames in sorted({n for n, _ in found})],
        ]
    )


def _forces(seeds: dict[int, dict[str, Any]]) -> str:
    return with_spread([r["test_meV"]["force_mae"] for r in seeds.values()], 1) if seeds else "-"


def verdict(found: Best, frames: int) -> str:
    if not (quotient := (frames, PRETRAINED) in found and ratios(found, frames, PRETRAINED)):
        return f"- {frames} frames: not measured."
    reached = "reached" if np.mean(quotient) >= GOAL else "missed"
    return (
        f"- {frames} frames: {with_spread(quotient, 2)} times smaller forces MAE from the "
        f"pretrained model than from nothing; the goal of {GOAL:g} is {reached}."
    )


def plot(result: dict[str, Any]) -> Any:
    """Forces MAE of every seed and start."""
    from matplotlib.figure import Figure

    found = best(result)
    sizes = sorted({frames for frames, _ in found})
    figure = Figure(figsize=(6, 3.5))
    axes = figure.subplots()
    for color, start in enumerate(dict.fromkeys(start for _, start in found)):
        for size in sizes:
            errors = [r["test_meV"]["force_mae"] for r in found.get((size, start), {}).values()]
            at = [sizes.index(size) + 0.15 * (color - 1)] * len(errors)
            axes.plot(at, errors, "o", color=f"C{color}", label=start if size == sizes[0] else None)
    axes.set(ylabel="forces MAE, meV/Å", yscale="log", xticks=range(len(sizes)))
    axes.set_xticklabels([f"{n} frames" for n in sizes])
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, axis="y", which="both")
    return figure


if __name__ == "__main__":
    app()
