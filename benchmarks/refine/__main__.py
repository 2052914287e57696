"""Active learning shown: a model that breaks when it is hot, before and after `mlpot refine`.

python -m benchmarks.refine run --mode standard       # goes on after a kill
python -m benchmarks.refine render --mode standard    # results/standard.md, and the README
"""

from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[2]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

ModeName = Annotated[str, typer.Option("--mode", help="dev or standard")]


@app.command()
def run(
    mode: ModeName = "standard",
    threads: Annotated[int, typer.Option(help="of trainings and simulations")] = 2,
) -> None:
    """Do what is not in the results yet."""
    import torch

    from benchmarks.accuracy.experiment import known
    from benchmarks.refine.experiment import MODES, RESULTS, STATE, Experiment
    from mlpot.train.loop import quiet

    quiet()
    torch.set_num_threads(threads)
    chosen = MODES[known(mode, MODES)]
    Experiment(chosen, RESULTS / f"{mode}.json", STATE / mode, typer.echo).run()


@app.command()
def render(mode: ModeName = "standard", readme: Path = ROOT / "README.md") -> None:
    """Write results/MODE.md; of the standard mode, the README's table as well."""
    from benchmarks.accuracy.experiment import known, read_results
    from benchmarks.refine.experiment import MODES, RESULTS
    from benchmarks.refine.tables import END, START, block, page, write_block
    from mlpot.models.checkpoint import write_atomically

    result = read_results(RESULTS / f"{known(mode, MODES)}.json")
    if not result.get("models"):
        raise typer.BadParameter(f"results/{mode}.json has no models yet: `run --mode {mode}`")
    write_atomically(RESULTS / f"{mode}.md", page(result).encode())
    if mode == "standard" and not write_block(readme, block(result)):
        raise typer.BadParameter(f"{readme.name} has no lines {START!r} and {END!r}")
    typer.echo(f"wrote {mode}.md")


if __name__ == "__main__":
    app()
