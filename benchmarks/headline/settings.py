"""What is compared, how thoroughly in each mode, and the recipe that every start gets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.headline.molecules import MOLECULES
from mlpot.analysis.scenarios import Scenario
from mlpot.errors import InputError
from mlpot.models.checkpoint import ModelInfo, load, load_potential
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.finetune import FinetuneConfig, FinetuneLoop
from mlpot.zoo import resolve

NOTHING, DENOISED, PRETRAINED = "nothing", "denoised", "pretrained"

#: why there is no model of a case, which is not tried again
DIVERGED = "every training diverged"


@dataclass(frozen=True)
class Mode:
    """How much is done.

    Attributes:
        molecules: names.
        draws: number of frames -> how often so many are drawn; every draw is a training.
        steps: of every training.
        rates: learning rates; every start gets the better one.
        compile: the training step; yes, no or auto.
        temperatures: K, of the simulations.
        picoseconds: of each.
        replicas: simulations of a model at a temperature.
        tested: labelled frames at most, of each molecule and temperature.
    """

    molecules: tuple[str, ...]
    draws: dict[int, int]
    steps: int
    rates: tuple[float, ...]
    compile: str
    temperatures: tuple[float, ...]
    picoseconds: float
    replicas: int
    tested: int

    @property
    def scenario(self) -> Scenario:
        """As the ladder of `mlpot stability`: relaxed, then Langevin at 1 fs."""
        return Scenario(
            "ladder", ("own",), self.temperatures, self.picoseconds, self.replicas, timestep=1.0
        )


_ALL = tuple(MOLECULES)
_LADDER = (300.0, 600.0, 1000.0, 1200.0)

MODES = {
    # every part once, on a molecule that is in the clone
    "dev": Mode(
        ("bicyclopentylamine",), {50: 1}, 40, (2e-3,), "no", (300.0, 1000.0), 0.2, 1, 10
    ),
    "fast": Mode(_ALL[:2], {50: 1, 450: 1}, 1000, (1e-3, 3e-3), "yes", _LADDER, 5.0, 4, 100),
    # what the goal is checked with
    "standard": Mode(
        _ALL, {50: 1, 200: 1, 450: 1}, 2000, (1e-3, 3e-3), "yes", _LADDER, 20.0, 2, 1000
    ),
}  # fmt: skip


class Case(NamedTuple):
    """One fine-tuned model: the better of its trainings."""

    molecule: str
    frames: int
    draw: int
    start: str

    @property
    def key(self) -> str:
        return f"{self.molecule} | {self.frames} | {self.draw} | {self.start}"

    @property
    def folder(self) -> str:
        return f"{self.molecule}-{self.frames}-{self.draw}-{self.start}"


def cases(mode: Mode, molecules: Sequence[str], starts: Sequence[str]) -> Iterator[Case]:
    """Few frames first, as the goal is about them; a second draw, if a mode has one, when every
    number of frames has had its first, so that the table is whole soonest."""
    for draw in range(max(mode.draws.values())):
        for frames in sorted(n for n, draws in mode.draws.items() if draw < draws):
            for molecule in molecules:
                for start in starts:
                    yield Case(molecule, frames, draw, start)


class Starts(NamedTuple):
    """Model files of the starts, and descriptions of those that are files."""

    files: dict[str, Path | None]
    infos: dict[str, ModelInfo]

    @property
    def architecture(self) -> ViSNetConfig:
        return ViSNetConfig(**self.infos[PRETRAINED].config)


def read_starts(model: str, denoised: str) -> Starts:
    """Nothing, the denoised backbone and the pretrained model; an empty name leaves one out.

    Raises:
        InputError: the two are of different architectures, so that nothing could be compared.
        MLPotError: no such model.
    """
    path = resolve(model)
    files: dict[str, Path | None] = {NOTHING: None}
    infos = {PRETRAINED: load_potential(path)[1]}
    if denoised:
        files[DENOISED] = backbone = resolve(denoised)
        infos[DENOISED] = other = load(backbone)[1]
        same = ViSNetConfig(**other.config) == ViSNetConfig(**infos[PRETRAINED].config)
        if other.kind != "denoiser" or not same:
            raise InputError(
                f"{denoised} is not a denoised backbone of the architecture of {model}; give the "
                "one that it was trained from with --denoised"
            )
    files[PRETRAINED] = path
    return Starts(files, infos)


def recipe(case: Case, rate: float, level: str, mode: Mode, starts: Starts) -> FinetuneConfig:
    """The same for every start. A fifth of the few frames (at most 20) is to judge by."""
    return FinetuneConfig(
        name=case.folder,
        level=level,
        validation=max(2, min(20, case.frames // 5)),
        test=0,
        split_by="frame",
        model=starts.architecture,
        prior=starts.infos[PRETRAINED].prior,
        loop=FinetuneLoop(
            steps=mode.steps,
            learning_rate=rate,
            warmup=min(100, mode.steps // 5),
            validate_every=-(-mode.steps // 20),
            seed=case.draw,
            compile=mode.compile,
        ),
    )


def shared_recipe(mode: Mode, starts: Starts) -> dict[str, Any]:
    """What the recipes of all cases have in common, as JSON: all but names, levels of theory,
    learning rates and seeds; frames to judge by for each number of frames."""
    each = {n: recipe(Case("", n, 0, ""), mode.rates[0], "", mode, starts) for n in mode.draws}
    told = next(iter(each.values())).model_dump(mode="json")
    for name in ("name", "level"):
        del told[name]
    for name in ("learning_rate", "seed"):
        del told["loop"][name]
    return told | {"validation": {str(n): r.validation for n, r in each.items()}}
