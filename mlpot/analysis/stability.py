"""Run a suite: many simulations of many molecules, each once, whatever interrupts it."""

import platform
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import molecule as g2_molecule
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlpot import __version__
from mlpot.analysis.accuracy import Accuracy, run_accuracy
from mlpot.analysis.batch import TORN, Batch, batches, run_batch, runs_of_state
from mlpot.analysis.criteria import FAILURES
from mlpot.analysis.molecules import Molecule
from mlpot.analysis.records import (
    Folder,
    Json,
    Suite,
    failures_of,
    molecule_json,
    write_topology,
)
from mlpot.analysis.scenarios import Planned, Scenario, plan
from mlpot.analysis.subjects import CalculatorModel, Subject
from mlpot.analysis.verdicts import gives_lengths
from mlpot.data.jobs import run as run_jobs
from mlpot.data.labellers import forget_calculator
from mlpot.data.record import Record
from mlpot.deploy.load import compile_ahead
from mlpot.errors import InputError
from mlpot.md.settings import LONG

#: molecules of ASE with elements that models of organic chemistry do not cover
FOREIGN = ("SiH4", "BF3", "NaCl", "AlCl3")

#: one that they do cover: a calculator that fails here too has another reason
USUAL = "CH3CH2OH"


@dataclass(frozen=True, eq=False)
class Reference:
    """Frames of a molecule to compare simulations with; its set has to be ``reference``."""

    positions: NDArray[np.floating]  # [F, N, 3] Å
    temperature: float  # K
    source: str


@dataclass(frozen=True, eq=False)
class Refusal:
    """Does the subject refuse a molecule of foreign elements before the first step?"""

    subject: Subject
    name: str

    @property
    def key(self) -> str:
        return f"refusal-{self.name}"


@dataclass(frozen=True, eq=False)
class Content:
    """What a suite is made of.

    Attributes:
        scenarios: see `mlpot.analysis.scenarios.MODES`.
        molecules: of any sets; those that no scenario names do not matter.
        mode: told in the summary.
        references: name of a molecule of the set ``reference`` -> frames to compare with.
        accuracy: name -> labelled frames.
        skipped: what -> why it is missing, to be told in the summary.
    """

    scenarios: Sequence[Scenario]
    molecules: Sequence[Molecule]
    mode: str = "own"
    references: Mapping[str, Reference] | None = None
    accuracy: Mapping[str, Sequence[Record]] | None = None
    skipped: Mapping[str, str] | None = None


def run(
    subject: Subject,
    content: Content,
    out: str | Path,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    retry: bool = False,
    torn: float = TORN,
    elsewhere: Collection[str] = (),
    only: Collection[str] = (),
    report: Callable[[str], None] = lambda text: None,
    on_start: Callable[[int, int], None] = lambda total, known: None,
    on_result: Callable[[bool], None] = lambda good: None,
) -> Folder:
    """Do what has not been done yet, and leave it in a folder (see `mlpot.analysis.records`).

    A run that is in the records is never done again, and one that was on its way goes on from
    its last state, a minute old at most. States of runs that are left for later are kept.

    Args:
        subject: what is tested.
        content: what with.
        out: folder; on a cluster, one that all workers see.
        workers: local processes; 0 runs in this one, with torch's own number of threads.
        scheduler: address of a dask scheduler to use instead.
        retry: do again what has failed (a calculator that could not do a start geometry, or that
            raised on the way), from its start.
        torn: a run is not simulated on once a bond is so many Å longer than at the start; less
            saves time where nobody asks for what happens to the pieces.
        elsewhere: keys of runs that another machine has done, which are left out here (see
            `mlpot.analysis.elsewhere`).
        only: names of scenarios to simulate now; the rest of the suite stays to be done.
        report: told, in a line, what is going on.
        on_start: called once with the number of jobs, and of those already done.
        on_result: called after each job, with False for a failure.

    Raises:
        InputError: nothing to run; the folder is another model's; no such scheduler or scenario.
        MLPotError: the model cannot be loaded.
    """
    _check_names(only, content)
    folder = Folder(Path(out).absolute())
    folder.check(subject.identity)
    asked = _asked(subject, content)
    with folder.store() as store:  # a second process is refused before it touches anything
        done = _cleared(folder, retry) | set(elsewhere)
        runs, others = _begin(subject, content, asked, folder, done)
        if only:
            runs, others = [run for run in runs if run.scenario.name in only], []
        failed = {} if retry else failures_of(folder.records_file)
        jobs = list(_jobs(subject, runs, others, folder, done, torn))
        todo = {job.key: job for job in jobs if job is not None and job.key not in failed}
        left = [run for job in todo.values() if isinstance(job, Batch) for run in job.runs]
        _compile(subject, left, report)
        on_start(len(jobs), len(jobs) - len(todo))
        run_jobs(work, todo, store, workers=workers, scheduler=scheduler, on_result=on_result)
        _clear(folder, {record["key"] for record in folder.records()} | set(elsewhere))
    return folder


def _cleared(folder: Folder, retry: bool) -> set[str]:
    """Keys that are done, once what a kill has left is removed; a retry begins anew."""
    records = folder.records()
    _clear(folder, {r["key"] for r in records})
    return {r["key"] for r in records if not (retry and r.get("ending") in FAILURES)}


def _clear(folder: Folder, done: set[str]) -> None:
    """Remove states of batches that are done, and of no other: hours of a scenario that was left
    for later may be in one."""
    partial = folder.path / "partial"
    if not partial.is_dir():
        return
    for path in partial.glob(".*"):  # a kill has cut these
        path.unlink()
    for path in partial.glob("*.npz"):
        runs = runs_of_state(path)
        if runs and runs <= done:
            path.unlink()
    if not any(partial.iterdir()):
        partial.rmdir()


def _asked(
    subject: Subject, content: Content
) -> tuple[list[Planned], list[Refusal | Accuracy], dict[str, str]]:
    """Runs, other jobs, and what is skipped, with the reason."""
    molecules, skipped = _covered(subject, content.molecules)
    runs = _plan(content, molecules)
    if not runs:
        reason = next(iter(skipped.values()), "no molecule is of a set that a scenario names")
        raise InputError(f"there is nothing to run: {reason}")
    others: list[Refusal | Accuracy] = [*_refusals(subject)]
    others += _accuracies(subject, content.accuracy or {}, skipped)
    return runs, others, skipped


def _begin(
    subject: Subject,
    content: Content,
    asked: tuple[list[Planned], list[Refusal | Accuracy], dict[str, str]],
    folder: Folder,
    done: set[str],
) -> tuple[list[Planned], list[Refusal | Accuracy]]:
    """What the suite consists of, once the folder has been claimed for it."""
    runs, others, skipped = asked
    used = {run.molecule.name: run.molecule for run in runs}
    jobs = _jobs(subject, runs, others, folder, done, TORN)
    folder.begin(
        Suite(
            model=subject.name,
            identity=subject.identity,
            mode=content.mode,
            runs=[run.key for run in runs],
            others=[job.key for job in others],
            molecules={name: molecule_json(m) for name, m in used.items()},
            skipped={**(content.skipped or {}), **skipped},
            machine=machine(subject),
            jobs=[job.key for job in jobs if job is not None],
            names={run.key: run.molecule.name for run in runs},
        )
    )
    _write_inputs(folder, used, content.references or {})
    return runs, others


def work(job: Batch | Accuracy | Refusal) -> Json:
    """One job, on whatever process: ``{"records": [...]}``."""
    if isinstance(job, Batch):
        return run_batch(job)
    return run_accuracy(job) if isinstance(job, Accuracy) else run_refusal(job)


def run_refusal(job: Refusal) -> Json:
    """A record of kind ``refusal``: ``refused`` is None for a calculator that computes it, or that
    cannot do ethanol either."""
    atoms = g2_molecule(job.name)
    refused, message = _refused(job.subject, atoms.numbers, atoms.positions)
    model = job.subject.open()
    known = set() if isinstance(model, CalculatorModel) else set(model.info.elements)
    foreign = sorted(set(atoms.numbers.tolist()) - known)
    record = {
        "kind": "refusal",
        "key": job.key,
        "molecule": job.name,
        "elements": [chemical_symbols[z] for z in foreign],
        "refused": refused,
        "message": message,
    }
    return {"records": [record]}


def _refused(
    subject: Subject, numbers: NDArray[np.int64], positions: NDArray[np.float64]
) -> tuple[bool | None, str]:
    message = subject.refuses(numbers, positions)
    if subject.labeller is None:
        return bool(message), message
    if not message:
        return None, ""
    usual = g2_molecule(USUAL)
    why = subject.refuses(usual.numbers, usual.positions)
    forget_calculator()  # what comes next begins with a new one, as it would without this question
    return (None, f"it does not do {USUAL} either: {why}") if why else (True, message)


def machine(subject: Subject) -> Json:
    """Where it runs: enough to understand a time, nothing that names a computer."""
    model = subject.open()
    return {
        "processor": processor(),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mlpot": __version__,
    }


# --- what there is to do -------------------------------------------------------------------------


def _covered(
    subject: Subject, molecules: Sequence[Molecule]
) -> tuple[list[Molecule], dict[str, str]]:
    """Molecules that the subject takes, and why not the others. Calculators are asked later."""
    if subject.labeller is not None:
        return list(molecules), {}
    why = {m.name: subject.refuses(m.numbers, m.positions) for m in molecules}
    taken = [m for m in molecules if not why[m.name]]
    return taken, {name: reason for name, reason in why.items() if reason}


def _plan(content: Content, molecules: Sequence[Molecule]) -> list[Planned]:
    """All runs; those with a reference at its temperature."""
    scenarios: list[Scenario] = []
    for scenario in content.scenarios:
        if scenario.sets != ("reference",):
            scenarios.append(scenario)
    runs = plan(scenarios, molecules)
    for scenario in (s for s in content.scenarios if s.sets == ("reference",)):
        for name, reference in list((content.references or {}).items())[: scenario.count]:
            one = [m for m in molecules if m.name == name and m.set == "reference"]
            runs += plan([replace(scenario, temperatures=(reference.temperature,))], one)
    return runs


def _refusals(subject: Subject) -> list[Refusal]:
    if subject.labeller is not None:
        return [Refusal(subject, name) for name in FOREIGN]
    covered = set(subject.open().info.elements)
    foreign = [n for n in FOREIGN if set(g2_molecule(n).numbers.tolist()) - covered]
    return [Refusal(subject, name) for name in foreign]


def _accuracies(
    subject: Subject, sets: Mapping[str, Sequence[Record]], skipped: dict[str, str]
) -> list[Accuracy]:
    """Jobs of the sets that the subject covers; the others go to ``skipped``."""
    found = []
    for name, records in sets.items():
        why = ""
        if subject.labeller is None:
            why = subject.refuses(
                np.unique(np.concatenate([r.numbers for r in records])), np.empty((0, 3))
            )
        if why:
            skipped[f"errors on {name}"] = why
        else:
            found.append(Accuracy(subject, name, tuple(records)))
    return found


def _check_names(only: Collection[str], content: Content) -> None:
    known = {scenario.name for scenario in content.scenarios}
    if unknown := set(only) - known:
        names = ", ".join(sorted(known))
        raise InputError(f"no scenario is named {', '.join(sorted(unknown))}; there are {names}")


def _jobs(
    subject: Subject,
    runs: Sequence[Planned],
    others: Sequence[Refusal | Accuracy],
    folder: Folder,
    done: set[str],
    torn: float,
) -> Iterator[Batch | Accuracy | Refusal | None]:
    """All jobs; None for one that is done.

    Those that the mean lengths of bonds are taken from come first: without them nothing is judged
    for good. Then long ones, so that no worker is left with one.
    """

    def order(batch: Batch) -> tuple[bool, int]:
        return not any(gives_lengths(run.told) for run in batch.runs), -_atom_steps(batch.runs)

    for batch in sorted(batches(runs, subject, folder.path), key=order):
        left = tuple(run for run in batch.runs if run.key not in done)
        yield Batch(subject, left, batch.folder, torn) if left else None
    for job in others:
        yield None if job.key in done else job


def _atom_steps(runs: Sequence[Planned]) -> int:
    return sum(len(run.molecule.numbers) * run.scenario.steps for run in runs)


def _write_inputs(
    folder: Folder, molecules: Mapping[str, Molecule], references: Mapping[str, Reference]
) -> None:
    for name, molecule in molecules.items():
        write_topology(folder.topology(name), molecule)
    for name, reference in references.items():
        told: dict[str, Any] = {
            "positions": np.asarray(reference.positions, dtype=np.float32),
            "temperature": reference.temperature,
            "source": reference.source,
        }
        path = folder.reference(name)
        temporary = path.with_name(f".{path.name}")
        with temporary.open("wb") as file:
            np.savez_compressed(file, **told)
        temporary.replace(path)


def _compile(subject: Subject, runs: Sequence[Planned], report: Callable[[str], None]) -> None:
    """Make machine code once, before workers would each make it, where that pays."""
    if subject.labeller is not None or subject.engine != "auto" or subject.model is None:
        return
    steps = sum(run.scenario.steps for run in runs)
    on_cpu = subject.open().device.type == "cpu"
    if on_cpu and steps >= LONG:
        largest = max(len(run.molecule.numbers) for run in runs)
        if compile_ahead(subject.model, subject.dtype, largest, report, len(runs)):
            subject.close()


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
