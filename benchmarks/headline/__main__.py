"""Starts compared: fine-tuned on the same few frames at 300 K, then driven to 1200 K.

python -m benchmarks.headline make                      # frames and labels by GFN2-xTB
python -m benchmarks.headline run --mode standard       # goes on after a kill
python -m benchmarks.headline render --mode standard    # results/standard.md, .png, README
"""

from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[2]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

ModeName = Annotated[str, typer.Option("--mode", help="dev, fast or standard")]


@app.command()
def make(
    molecule: Annotated[list[str] | None, typer.Option(help="else all of them")] = None,
    workers: Annotated[int, typer.Option(help="processes; 0 runs in this one")] = 0,
) -> None:
    """Simulate and label with GFN2-xTB what is not there yet, and write data/."""
    from benchmarks.headline.experiment import STATE
    from benchmarks.headline.make import make as make_one
    from benchmarks.headline.make import names

    for name in molecule or names():
        make_one(name, STATE / "make", workers=workers, report=typer.echo)


@app.command()
def run(
    mode: ModeName = "fast",
    model: Annotated[str, typer.Option(help="the pretrained start")] = "pretrained-visnet",
    denoised: Annotated[
        str, typer.Option(help="what the model was trained from; '' leaves that start out")
    ] = "pretrained-visnet-denoised",
    threads: Annotated[int, typer.Option(help="of trainings and simulations")] = 2,
) -> None:
    """Do what is not in the results yet."""
    import torch

    from benchmarks.accuracy.experiment import known
    from benchmarks.headline.experiment import RESULTS, STATE, Experiment
    from benchmarks.headline.molecules import available
    from benchmarks.headline.settings import MODES, read_starts
    from mlpot.train.loop import quiet

    quiet()
    torch.set_num_threads(threads)
    chosen = MODES[known(mode, MODES)]
    problems, absent = available(chosen.molecules)
    for name, why in absent.items():
        typer.echo(f"{name} is left out: {why}")
    Experiment(
        chosen,
        read_starts(model, denoised),
        problems,
        RESULTS / f"{mode}.json",
        STATE / mode,
        absent,
        typer.echo,
    ).run()


@app.command()
def render(mode: ModeName = "standard", readme: Path = ROOT / "README.md") -> None:
    """Write results/MODE.md and .png; of the standard mode, the README's table as well."""
    from benchmarks.accuracy.experiment import known, read_results
    from benchmarks.headline.experiment import RESULTS
    from benchmarks.headline.plot import plot
    from benchmarks.headline.settings import MODES
    from benchmarks.headline.tables import END, START, block, page, write_block
    from mlpot.models.checkpoint import write_atomically

    result = read_results(RESULTS / f"{known(mode, MODES)}.json")
    if not result.get("models"):
        raise typer.BadParameter(f"results/{mode}.json has no models yet: `run --mode {mode}`")
    write_atomically(RESULTS / f"{mode}.md", page(result, mode).encode())
    plot(result, RESULTS / f"{mode}.png")
    typer.echo(f"wrote {mode}.md and {mode}.png")
    if mode == "standard":
        if not write_block(readme, block(result)):
            raise typer.BadParameter(f"{readme.name} has no lines {START!r} and {END!r}")
        typer.echo(f"wrote the table in {readme.name}")


if __name__ == "__main__":
    app()
