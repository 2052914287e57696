"""Fine-tune, test, simulate, and keep what came of it: each once, whatever interrupts it.

Trainings and simulations keep their own state in ``runs/headline/MODE/CASE`` and go on from
there; numbers go to ``results/MODE.json`` as soon as they are known.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.experiment import begun_at, write_results
from benchmarks.headline.molecules import ROOT, Problem, chosen, tested
from benchmarks.headline.settings import DIVERGED, Case, Mode, Starts, cases, recipe, shared_recipe
from mlpot.analysis.batch import TORN
from mlpot.analysis.criteria import FAILURES, INTEGRATOR, Verdict, judge
from mlpot.analysis.records import Folder, failures_of, read_trajectory
from mlpot.analysis.stability import Content
from mlpot.analysis.stability import run as simulate
from mlpot.analysis.subjects import subject
from mlpot.analysis.verdicts import measured
from mlpot.data.record import Record
from mlpot.data.splits import fingerprint
from mlpot.errors import DivergedError
from mlpot.models.checkpoint import load_potential
from mlpot.train.finetune import evaluate, finetune
from mlpot.train.losses import Errors

Json = dict[str, Any]

#: Å longer than at the start: broken by any rule, and nobody asks for what follows
BROKEN = 1.5

RESULTS = Path(__file__).parent / "results"
STATE = ROOT / "runs" / "headline"


def settings_of(mode: Mode, starts: Starts, problems: Sequence[Problem]) -> Json:
    """What decides the numbers; recipe and simulation too, whose defaults may change."""
    told = asdict(mode)
    told["recipe"] = shared_recipe(mode, starts)
    told["scenario"] = asdict(mode.scenario)
    told["draws"] = {str(frames): count for frames, count in mode.draws.items()}
    told["molecules"] = {p.name: fingerprint(_frames(p)) for p in problems}
    told["models"] = {start: info.weights_sha256 for start, info in starts.infos.items()}
    return json.loads(json.dumps(told))  # as it will be read back


def _frames(problem: Problem) -> list[Record]:
    tested = [*problem.tests.values(), *problem.beside.values()]
    return [*problem.learn, *(record for frames in tested for record in frames)]


def torn(problem: Problem) -> float:
    """Å longer than at the start, where nobody asks any more what a bond does. A proton that
    changes sides is longer than `BROKEN` off the atom it has left."""
    return TORN if problem.mobile else BROKEN


class Experiment:
    """Everything of one mode.

    Args:
        mode: what is done.
        starts: from which models.
        problems: molecules whose frames are here.
        results: file of the numbers.
        state: folder of trainings and trajectories.
        absent: molecule -> why it is left out.
        report: told, in a line, what is going on.

    Raises:
        InputError: ``results`` was begun under other settings.
    """

    def __init__(
        self,
        mode: Mode,
        starts: Starts,
        problems: Sequence[Problem],
        results: Path,
        state: Path,
        absent: dict[str, str] | None = None,
        report: Callable[[str], None] = lambda text: None,
    ):
        self.mode, self.starts, self.state = mode, starts, state
        self.problems = {p.name: p for p in problems}
        self.file, self.report = results, report
        self.result = self._begun(absent or {})

    def _begun(self, absent: dict[str, str]) -> Json:
        settings = settings_of(self.mode, self.starts, list(self.problems.values()))
        described = {p.name: _described(p, self.mode) for p in self.problems.values()}
        new: Json = {"absent": absent, "molecules": described, "trainings": {}, "models": {}}
        new["failed"] = {}  # case -> what failed in its simulations, which are tried again
        return new | begun_at(self.file, settings)

    def run(self) -> None:
        """Do what has not been done."""
        for case in cases(self.mode, list(self.problems), list(self.starts.files)):
            self.do(case)

    def do(self, case: Case) -> None:
        """Train with every learning rate, then test and simulate the model that validates best."""
        trainings, models = self.result["trainings"], self.result["models"]
        for rate in self.mode.rates:
            key = training_key(case, rate)
            if key not in trainings or self._lost(case, rate):
                trainings[key] = self._trained(case, rate)
                write_results(self.file, self.result)
                row = trainings[key]
                self.report(f"{key}: {row.get('diverged') or row['validation_meV']}")
        if case.key not in models:
            rate = best_rate(trainings, case, self.mode.rates)
            if rate is None:
                driven, failed = {}, DIVERGED
            else:
                driven, failed = self._driven(case, rate)
            self.result["failed"].pop(case.key, None)
            (self.result["failed"] if failed else models)[case.key] = failed or driven
            write_results(self.file, self.result)
            self.report(f"{case.key}: {failed or stable_of(driven)}")

    def _folder(self, case: Case, rate: float) -> Path:
        return self.state / case.folder / f"rate-{rate:g}"

    def _model(self, case: Case, rate: float) -> Path:
        return self._folder(case, rate) / "model.safetensors"

    def _lost(self, case: Case, rate: float) -> bool:
        """Another machine has the numbers of a training, and not its model."""
        if case.key in self.result["models"] or self._model(case, rate).is_file():
            return False
        return self.result["trainings"][training_key(case, rate)]["validation_loss"] is not None

    def _trained(self, case: Case, rate: float) -> Json:
        problem = self.problems[case.molecule]
        config = recipe(case, rate, problem.level, self.mode, self.starts)
        frames = chosen(problem.learn, case.frames, case.draw)
        start, begin = self.starts.files[case.start], (time.perf_counter(), time.process_time())
        out = self._folder(case, rate)
        try:
            info, errors = finetune(frames, config, out, start, False, lambda text: None)
            told = {
                "validation_loss": finite(info.provenance["validation"]["loss"]),
                "validation_meV": millis(errors),
            }
        except DivergedError as error:  # once more would be the same
            told = {"validation_loss": None, "validation_meV": {}, "diverged": str(error)}
        return {
            "learning_rate": rate,
            **told,
            "minutes": round((time.perf_counter() - begin[0]) / 60, 3),
            "core_hours": round((time.process_time() - begin[1]) / 3600, 5),
        }

    def _driven(self, case: Case, rate: float) -> tuple[Json, str]:
        """The row of a model, and what failed in its simulations."""
        problem = self.problems[case.molecule]
        path = self._model(case, rate)
        model = load_potential(path)[0]
        errors = {
            f"{t:g}": millis(evaluate(model, frames))
            for t, frames in tested(problem.tests, self.mode.tested).items()
        }
        beside = {what: millis(evaluate(model, f)) for what, f in problem.beside.items()}
        content = Content([self.mode.scenario], [problem.molecule])
        out = self.state / case.folder / "simulations"
        begin = time.perf_counter()
        how: Json = {"retry": True, "torn": torn(problem), "report": self.report}
        folder = simulate(subject(str(path)), content, out, **how)
        rows, failed = verdicts(folder, problem)
        driven = {
            **case._asdict(),
            "learning_rate": rate,
            "test_meV": errors,
            "beside_meV": beside,
            "runs": rows,
            "minutes": round((time.perf_counter() - begin) / 60, 3),
            "core_hours": round(sum(row.pop("cpu_seconds") for row in rows) / 3600, 5),
        }
        return driven, failed


def training_key(case: Case, rate: float) -> str:
    return f"{case.key} | {rate:g}"


def best_rate(trainings: dict[str, Json], case: Case, rates: Sequence[float]) -> float | None:
    """By validation frames, which are part of the few; None if every training diverged."""
    losses = {rate: trainings[training_key(case, rate)]["validation_loss"] for rate in rates}
    finished = {rate: loss for rate, loss in losses.items() if loss is not None}
    return min(finished, key=lambda rate: finished[rate], default=None)


def verdicts(folder: Folder, problem: Problem) -> tuple[list[Json], str]:
    """The rules of `mlpot stability` on every run, for the bonds that are judged; and in a sentence
    which runs have failed, "" if none has.

    Lengths are compared with means of the reference method, not of the model's own simulations:
    every start is measured by the same.
    """
    records = {r["key"]: r for r in folder.records()}
    planned = folder.suite().runs
    why = list(failures_of(folder.records_file).values())
    rows = []
    for record in (records[key] for key in planned if key in records):
        found = _verdict(record, folder, problem)
        if not found.broke and found.cause in FAILURES:  # says nothing of the potential
            why.append(record["reason"] or found.cause)
            continue
        rows.append(_row(record, found, problem))
    missing = len(planned) - len(rows)
    reasons = "; ".join(sorted(set(why))) or "they were cut off"
    return rows, f"{missing} of {len(planned)} simulations failed: {reasons}" if missing else ""


def _verdict(record: Json, folder: Folder, problem: Problem) -> Verdict:
    positions, last = read_trajectory(folder.trajectory(record["id"])), record["last"]
    return judge(
        problem.molecule.numbers,
        problem.bonds,
        problem.lengths,
        positions,
        np.array(record["temperatures"], dtype=np.float64),
        np.array(record["thermostat"]),
        np.arange(len(positions)) * record["interval"] / 1000,
        end=record["steps"] * record["timestep"] / 1000,
        lost=record["lost"],
        ending=record["ending"] or INTEGRATOR,
        last=None if last is None else np.array(last, dtype=np.float64),
    )


def _row(record: Json, found: Verdict, problem: Problem) -> Json:
    return {
        "temperature": record["temperature"],
        "seed": record["seed"],
        "stable_ps": round(found.stable_ps, 4),
        "broke": found.broke,
        "cause": found.cause,
        "guarded": record.get("guarded", False),
        "flag": measured(record.get("flag"), problem.bonds, problem.lengths),
        "engine": record["engine"],
        "cpu_seconds": record["cpu_seconds"],
    }


def stable_of(model: Json) -> str:
    """'300 K 20 20, 1000 K 0.4 1.2'"""
    by_kelvin: dict[float, list[str]] = {}
    for run in model["runs"]:
        by_kelvin.setdefault(run["temperature"], []).append(f"{run['stable_ps']:g}")
    return "stable ps " + ", ".join(f"{t:g} K {' '.join(v)}" for t, v in by_kelvin.items())


def _described(problem: Problem, mode: Mode) -> Json:
    return {
        "smiles": problem.molecule.smiles,
        "atoms": len(problem.molecule.numbers),
        "level": problem.level,
        "not_judged": problem.mobile,
        "tested": {f"{t:g}": len(f) for t, f in tested(problem.tests, mode.tested).items()},
    }


def millis(errors: Errors) -> Json:
    """meV/atom and meV/Å of eV/atom and eV/Å; None for what is no number."""
    found = {name: finite(1e3 * value) for name, value in errors._asdict().items()}
    return {name: None if v is None else float(f"{v:.6g}") for name, v in found.items()}


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
