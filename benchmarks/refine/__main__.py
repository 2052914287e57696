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

    from benchmarks.refine.experiment import MODES, RESULTS, STATE, Experiment
    from mlpot.train.loop import quiet

    quiet()
    torch.set_num_threads(threads)
    chosen = MODES[_known(mode)]
    Experiment(chosen, RESULTS / f"{mode}.json", STATE / mode, typer.echo).run()


@app.command()
def render(mode: ModeName = "standard", readme: Path = ROOT / "README.md") -> None:
    """Write results/MODE.md; of the standard mode, the README's table as well."""
    from benchmarks.accuracy.experiment import read_results
    from benchmarks.refine.experiment import RESULTS
    from benchmarks.refine.tables import block, page, write_block
    from mlpot.models.checkpoint import write_atomically

    result = read_results(RESULTS / f"{_known(mode)}.json")
    if not result.get("models"):
        raise typer.BadParameter(f"results/{mode}.json has no models yet: `run --mode {mode}`")
    write_atomically(RESULTS / f"{mode}.md", page(result).encode())
    if mode == "standard":
        write_block(readme, block(result))
    typer.echo(f"wrote {mode}.md")


def _known(mode: str) -> str:
    from benchmarks.refine.experiment import MODES

    if mode not in MODES:
        raise typer.BadParameter(f"--mode must be {', '.join(MODES)}, got {mode!r}")
    return mode


if __name__ == "__main__":
    app()
