"""Train on few frames at 300 K, refine at higher temperatures, simulate every model on the way.

Two controls are trained as the last model was, from the same start and on as many frames: of 300 K
only, and of all temperatures without anything that chose them.

Labels are GFN2-xTB's, of which `benchmarks/headline/data` has frames to learn from and to test on.
A bond is judged as there: by its mean in the reference's frames, the same for every model.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms

from benchmarks.accuracy.experiment import begun_at, write_results
from benchmarks.headline.experiment import millis, torn, verdicts
from benchmarks.headline.molecules import ROOT, Problem, available, chosen, tested
from mlpot.active.records import ROUNDS, RoundFiles, read_json
from mlpot.active.refine import refine
from mlpot.active.settings import RefineSettings
from mlpot.analysis.scenarios import Scenario
from mlpot.analysis.stability import Content
from mlpot.analysis.stability import run as simulate
from mlpot.analysis.subjects import subject
from mlpot.data.labellers import labeller
from mlpot.data.record import Record
from mlpot.data.splits import fingerprint
from mlpot.errors import DataError
from mlpot.md.structure import read_structure
from mlpot.models.checkpoint import load_potential
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.finetune import FinetuneConfig, FinetuneLoop, evaluate, finetune

Json = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
STATE = ROOT / "runs" / "refine"

#: names of the controls
COLD, HOT = "as many at 300 K", "as many at random, 300 to 1000 K"

#: of a repeat; more than the simulations of a refinement
SEEDS = 10_000

#: of pretrained-visnet, with fresh weights: what few frames alone make of it does break
ARCHITECTURE = ViSNetConfig(layers=4, channels=64, heads=64, cutoff=4.0)


@dataclass(frozen=True)
class Mode:
    """How much is done.

    Attributes:
        molecule: of `benchmarks.headline.molecules`.
        frames: at 300 K, to start from.
        repeats: draws of those frames; each is a refinement of its own.
        refinement: of `mlpot refine`.
        steps: of every training.
        temperatures: K, of the simulations that judge.
        picoseconds: of each.
        seeds: at each temperature.
        tested: labelled frames at most, at each temperature.
    """

    molecule: str
    frames: int
    repeats: int
    refinement: RefineSettings
    steps: int
    temperatures: tuple[float, ...]
    picoseconds: float
    seeds: int
    tested: int
    compile: str = "auto"

    @property
    def scenario(self) -> Scenario:
        """Of the simulations that judge: as the ladder of `mlpot stability`, at 1 fs."""
        return Scenario(
            "ladder", ("own",), self.temperatures, self.picoseconds, self.seeds, timestep=1.0
        )

    @property
    def labels(self) -> int:
        """Frames that refinement may have labelled, at most."""
        return self.refinement.initial + self.refinement.rounds * self.refinement.frames


MODES = {
    "dev": Mode(
        "bicyclopentylamine",
        20,
        1,
        RefineSettings((300.0,), ps=0.1, replicas=2, rounds=1, frames=5, initial=10),
        20,
        (1000.0,),
        0.1,
        2,
        10,
        "no",
    ),
    "standard": Mode(
        "bicyclopentylamine",
        50,
        2,
        # 10 + 5 x 28 labels: the control takes as many from the reference's 150 hot frames
        RefineSettings((300.0, 600.0, 1000.0), ps=5.0, replicas=4, rounds=5, frames=28, initial=10),
        2000,
        (600.0, 1000.0),
        10.0,
        8,
        1000,
    ),
}


class Experiment:
    """Everything of one mode.

    Args:
        results: file of the numbers.
        state: folder of trainings and trajectories.
        report: told, in a line, what is going on.

    Raises:
        InputError: ``results`` was begun under other settings.
        DataError: the molecule's frames are absent, or too few for the controls.
    """

    def __init__(self, mode: Mode, results: Path, state: Path, report: Callable[[str], None]):
        self.mode, self.state, self.file, self.report = mode, state, results, report
        self.problem = _problem(mode.molecule)
        told = {**asdict(mode), "refinement": mode.refinement.told()}
        told["refinement"]["rounds"] = mode.refinement.rounds
        told["recipe"] = self._recipe(0).model_dump(mode="json")
        told["scenario"] = asdict(mode.scenario)
        told["data"] = fingerprint([*self.problem.learn, *self._hot()])
        settings = json.loads(json.dumps(told))
        new: Json = {"level": self.problem.level, "refinements": {}, "models": {}}
        new["failed"] = {}  # model -> what failed in its simulations, which are tried again
        self.result = new | begun_at(results, settings)
        self._check_controls()

    def _check_controls(self) -> None:
        """As many frames as refinement may take, before hours have been spent on it."""
        for name, frames in ((COLD, self.problem.learn[self.mode.frames :]), (HOT, self._hot())):
            if self.mode.labels > len(frames):
                raise DataError(
                    f"refinement may label {self.mode.labels} frames, and for the control "
                    f"{name!r} there are {len(frames)}. Let it take fewer frames or rounds"
                )

    def run(self) -> None:
        """Do what has not been done. A repeat that is whole in the results needs no folder, so
        that another machine goes on with the next."""
        for draw in range(self.mode.repeats):
            if not complete(self.result, draw):
                self._repeat(draw)

    def _repeat(self, draw: int) -> None:
        state = self.state / f"draw-{draw}"
        if not state.is_dir():  # begun on another machine: its models are not to be had again
            self._drop(draw)
        learn = chosen(self.problem.learn, self.mode.frames, draw)
        start = self._trained(draw, learn, state / "start", None)
        self._measure(draw, "start", start, len(learn))
        out = state / "refined"
        refine(
            read_structure(str(self._geometry())),
            start,
            labeller("gfn2-xtb"),
            replace(self.mode.refinement, seed=draw * SEEDS),
            self._recipe(draw),
            out,
            data=learn,
            progress=False,
            report=self.report,
        )
        told = read_json(out / ROUNDS)
        kept = {key: told[key] for key in ("rounds", "outcome")}
        self.result["refinements"][str(draw)] = kept
        labels = 0
        trained = [row for row in told["rounds"] if row["trained"]]
        self._forget(draw, {_after(row["round"]) for row in trained})
        for row in trained:
            path, labels = RoundFiles(out, row["round"]).model, row["training_frames"]
            self._measure(draw, _after(row["round"]), path, labels)
        for name, frames in self._controls(draw, labels).items() if labels else ():
            together = [*learn, *frames]
            folder = state / ("cold" if name == COLD else "hot")
            path = self._trained(draw, together, folder, start)
            self._measure(draw, name, path, len(together))
        write_results(self.file, self.result)

    def _forget(self, draw: int, rounds: set[str]) -> None:
        """Models of a refinement whose folder was lost, and which had more rounds than this."""
        for kind in ("models", "failed"):
            for name in _measured(self.result[kind], draw):
                if name.startswith(_after("")) and name not in rounds:
                    del self.result[kind][f"{name} | {draw}"]

    def _drop(self, draw: int) -> None:
        """All numbers of a repeat."""
        self.result["refinements"].pop(str(draw), None)
        for kind in ("models", "failed"):
            for name in _measured(self.result[kind], draw):
                del self.result[kind][f"{name} | {draw}"]

    def _controls(self, draw: int, labels: int) -> dict[str, list[Record]]:
        """As many more frames as refinement took, that nothing chose."""
        more, seed = labels - self.mode.frames, draw + 1000
        cold = chosen(self.problem.learn, labels, draw)[self.mode.frames :]
        return {COLD: cold, HOT: chosen(self._hot(), more, seed)}

    def _hot(self) -> list[Record]:
        """Of the reference's two simulations at each temperature the first; the other is to test
        on."""
        return [r for frames in self.problem.tests.values() for r in frames[: len(frames) // 2]]

    def _tests(self) -> dict[float, list[Record]]:
        second = {t: f[len(f) // 2 :] for t, f in self.problem.tests.items()}
        return tested(second, self.mode.tested)

    def _trained(self, draw: int, frames: list[Record], out: Path, start: Path | None) -> Path:
        finetune(frames, self._recipe(draw), out, start, progress=False, report=lambda text: None)
        return out / "model.safetensors"

    def _recipe(self, draw: int) -> FinetuneConfig:
        """The same of every model of a repeat, but for the frames."""
        steps = self.mode.steps
        return FinetuneConfig(
            name=f"{self.mode.molecule}-refined",
            level=self.problem.level,
            validation=0.2,
            test=0,
            split_by="frame",
            model=ARCHITECTURE,
            loop=FinetuneLoop(
                steps=steps,
                learning_rate=3e-3,
                warmup=min(100, steps // 5),
                validate_every=-(-steps // 20),
                seed=draw,
                compile=self.mode.compile,
            ),
        )

    def _geometry(self) -> Path:
        """The molecule as a file: what `mlpot refine` takes."""
        path = self.state / f"{self.mode.molecule}.xyz"
        path.parent.mkdir(parents=True, exist_ok=True)
        molecule = self.problem.molecule
        ase.io.write(path, Atoms(molecule.numbers, molecule.positions))
        return path

    def _measure(self, draw: int, name: str, path: Path, frames: int) -> None:
        """Errors on frames of the reference, and simulations."""
        model, info = load_potential(path)
        key = f"{name} | {draw}"
        if self.result["models"].get(key, {}).get("sha256") == info.sha256:
            return
        errors = {f"{t:g}": millis(evaluate(model, f)) for t, f in self._tests().items()}
        content = Content([self.mode.scenario], [self.problem.molecule])
        out = path.parent / "simulations"
        how: Json = {"retry": True, "torn": torn(self.problem), "report": lambda text: None}
        folder = simulate(subject(str(path)), content, out, **how)
        runs, failed = verdicts(folder, self.problem)
        row = {"name": name, "draw": draw, "frames": frames, "sha256": info.sha256}
        row |= {"test_meV": errors, "runs": runs}
        self.result["failed"].pop(key, None)
        self.result["failed" if failed else "models"][key] = failed or row
        write_results(self.file, self.result)
        stable = [run["stable_ps"] for run in runs]
        told = f"stable for {sum(stable) / len(stable):.2f} ps" if stable else ""
        self.report(f"{key}: {frames} labels, {failed or told}")


def complete(result: Json, draw: int) -> bool:
    """Every model of this repeat has been measured; where no round was trained there are no
    controls."""
    if str(draw) not in result["refinements"]:
        return False
    rounds = result["refinements"][str(draw)]["rounds"]
    names = [_after(row["round"]) for row in rounds if row["trained"]]
    wanted = {"start", *names, *([COLD, HOT] if names else [])}
    return wanted <= set(_measured(result["models"], draw))


def _measured(models: Json, draw: int) -> list[str]:
    """Names of those models that are of a repeat."""
    named = [key.split(" | ") for key in models]
    return [name for name, number in named if number == str(draw)]


def _after(number: int | str) -> str:
    """Name of the model of a round."""
    return f"after round {number}"


def _problem(molecule: str) -> Problem:
    problems, absent = available([molecule])
    if not problems:
        raise DataError(f"{molecule}: {absent[molecule]}")
    return problems[0]
