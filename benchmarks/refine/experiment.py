"""Train on few frames at 300 K, refine at higher temperatures, simulate every model on the way.

Labels are GFN2-xTB's, of which `benchmarks/headline/data` has frames to learn from and to test on.
A bond is judged as there: by its mean in the reference's frames, the same for every model.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms

from benchmarks.accuracy.experiment import begun_at, write_results
from benchmarks.headline.experiment import millis, verdicts
from benchmarks.headline.molecules import ROOT, Problem, available, chosen, tested
from mlpot.active.records import ROUNDS, RoundFiles, read_json
from mlpot.active.refine import refine
from mlpot.active.settings import RefineSettings
from mlpot.analysis.scenarios import Scenario
from mlpot.analysis.stability import Content
from mlpot.analysis.stability import run as simulate
from mlpot.analysis.subjects import subject
from mlpot.data.labellers import labeller
from mlpot.data.splits import fingerprint
from mlpot.errors import DataError
from mlpot.md.structure import read_structure
from mlpot.models.checkpoint import load_potential
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.finetune import FinetuneConfig, FinetuneLoop, evaluate, finetune

Json = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
STATE = ROOT / "runs" / "refine"

#: of pretrained-visnet, with fresh weights: what few frames alone make of it does break
ARCHITECTURE = ViSNetConfig(layers=4, channels=64, heads=64, cutoff=4.0)


@dataclass(frozen=True)
class Mode:
    """How much is done.

    Attributes:
        molecule: of `benchmarks.headline.molecules`.
        frames: at 300 K, to start from.
        refinement: of `mlpot refine`.
        steps: of every training.
        temperatures: K, of the simulations that judge.
        picoseconds: of each.
        seeds: at each temperature.
        tested: labelled frames at most, at each temperature.
    """

    molecule: str
    frames: int
    refinement: RefineSettings
    steps: int
    temperatures: tuple[float, ...]
    picoseconds: float
    seeds: int
    tested: int
    compile: str = "auto"


MODES = {
    "dev": Mode(
        "bicyclopentylamine",
        20,
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
        RefineSettings((300.0, 600.0, 1000.0), ps=5.0, replicas=4, rounds=5, initial=10),
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
        DataError: the molecule's frames are absent.
    """

    def __init__(self, mode: Mode, results: Path, state: Path, report: Callable[[str], None]):
        self.mode, self.state, self.file, self.report = mode, state, results, report
        self.problem = _problem(mode.molecule)
        learn = chosen(self.problem.learn, mode.frames, 0)
        told = {**asdict(mode), "refinement": mode.refinement.told(), "frames": fingerprint(learn)}
        settings = json.loads(json.dumps(told | {"model": ARCHITECTURE.model_dump()}))
        self.learn = learn
        new = {"count": len(learn), "level": self.problem.level, "rounds": [], "models": {}}
        self.result = new | begun_at(results, settings)

    def run(self) -> None:
        """Do what has not been done."""
        config = self._recipe()
        first = self.state / "start"
        quiet = {"progress": False, "report": lambda text: None}
        finetune(self.learn, config, first, None, **quiet)
        self._measure("start", first / "model.safetensors", len(self.learn))
        out = self.state / "refined"
        refine(
            read_structure(str(self._geometry())),
            first / "model.safetensors",
            labeller("gfn2-xtb"),
            self.mode.refinement,
            config,
            out,
            data=self.learn,
            progress=False,
            report=self.report,
        )
        told = read_json(out / ROUNDS)
        self.result |= {"rounds": told["rounds"], "outcome": told["outcome"]}
        for row in told["rounds"]:
            if row["trained"]:
                path = RoundFiles(out, row["round"]).model
                self._measure(f"after round {row['round']}", path, row["training_frames"])
        write_results(self.file, self.result)

    def _recipe(self) -> FinetuneConfig:
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
                learning_rate=2e-3,
                warmup=min(100, steps // 5),
                validate_every=-(-steps // 20),
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

    def _measure(self, name: str, path: Path, frames: int) -> None:
        """Errors on frames of the reference, and simulations."""
        if name in self.result["models"]:
            return
        model, mode = load_potential(path)[0], self.mode
        errors = {
            f"{t:g}": millis(evaluate(model, records))
            for t, records in tested(self.problem.tests, mode.tested).items()
        }
        scenario = Scenario(
            "ladder", ("own",), mode.temperatures, mode.picoseconds, seeds=mode.seeds
        )
        content = Content([scenario], [self.problem.molecule])
        out = self.state / f"simulations-{name.replace(' ', '-')}"
        folder = simulate(subject(str(path)), content, out, report=lambda text: None)
        runs = verdicts(folder, self.problem)
        self.result["models"][name] = {"frames": frames, "test_meV": errors, "runs": runs}
        write_results(self.file, self.result)
        stable = [run["stable_ps"] for run in runs]
        self.report(f"{name}: {frames} labels, stable for {sum(stable) / len(stable):.2f} ps")


def _problem(molecule: str) -> Problem:
    problems, absent = available([molecule])
    if not problems:
        raise DataError(f"{molecule}: {absent[molecule]}")
    return problems[0]
