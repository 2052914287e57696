"""The loop: simulate, choose, label, fine-tune, and again until the guard is quiet.

    refine(read_structure("CCO"), "pretrained-visnet", labeller("gfn2-xtb"), out="runs/refined")

Every round fine-tunes from the start model, on all labels so far, and never from the model of the
round before. That costs no more steps, and the result then depends on the labels alone: what an
early round learned from few frames is not inherited, the frames that a guard holds back have never
been trained on, and the start model's energies are moved to the labeller's level of theory once.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mlpot import __version__
from mlpot.active.assess import assess, plain
from mlpot.active.checks import Start, check_start
from mlpot.active.choose import choose
from mlpot.active.explore import THERMAL, explore, plan
from mlpot.active.records import (
    MODEL,
    Journal,
    RoundFiles,
    alone,
    read_frames,
    read_json,
    write_frames,
    write_json,
)
from mlpot.active.settings import RefineSettings
from mlpot.data.formats import read
from mlpot.data.formats.labelled import write_labelled
from mlpot.data.label import Labelled, label
from mlpot.data.labellers import Labeller
from mlpot.data.record import Record
from mlpot.errors import DataError
from mlpot.md.structure import Structure
from mlpot.models.checkpoint import load_potential, write_atomically
from mlpot.train.finetune import FinetuneConfig, finetune

#: how a refinement ends
QUIET = "quiet: nothing left what the model was trained on"
SPENT = "all rounds are done, and the guard still raises flags"
STUCK = "stuck: "
BROKEN = (
    f"{STUCK}the simulations broke before there was a sound frame to label. Start from a relaxed "
    "geometry, at lower temperatures, or from a model that was fine-tuned on frames of this "
    "molecule (and give those with --data), in another folder"
)

#: makes what shows the progress of labelling: (what, file) -> context with arguments of `label`
Watching = Callable[[str, Path], AbstractContextManager[dict[str, Any]]]


def refine(
    structure: Structure,
    model: str | Path,
    labeller: Labeller,
    settings: RefineSettings,
    config: FinetuneConfig,
    out: str | Path,
    *,
    data: Sequence[Record] = (),
    workers: int = 1,
    scheduler: str | None = None,
    retry: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = print,
    console: Console | None = None,
    watching: Watching = lambda what, store: nullcontext({}),
) -> dict[str, Any]:
    """Make a model that holds at these temperatures; a run that was cut off goes on.

    Writes ``round_00``, ... (see `RoundFiles`), ``labels.store``, ``rounds.json`` with a row a
    round, and after every training ``model.safetensors``.

    Args:
        structure: the molecule, without a box.
        model: name or ``.safetensors`` file to start from, and to fine-tune in every round.
        labeller: see `mlpot.data.labellers.labeller`.
        config: recipe of the trainings.
        out: folder.
        data: labelled frames of the same level of theory, trained on in every round.
        workers, scheduler, retry: see `mlpot.data.label.label`.
        progress, console, report, watching: progress bars and where they are shown; told, in a
            line, what is going on; shows the progress of labelling.

    Returns:
        what is in ``rounds.json``.

    Raises:
        InputError: options, data or a folder that cannot be used, or that another process uses.
        DataError: no frame of a round could be labelled.
    """
    config = config.model_copy(update={"level": labeller.level})
    start = check_start(structure, model, labeller, config, data, probing=scheduler is None)
    asked = {"settings": settings.told(), "recipe": config.model_dump(mode="json"), **start.asked}
    described = {"model": start.info.name, "level": labeller.level, "mlpot": __version__}
    with alone(out := Path(out)):
        return _Loop(
            structure=structure,
            labeller=labeller,
            settings=settings,
            config=config,
            out=out,
            start=start,
            data=list(data),
            journal=Journal(out, asked, described),
            where={"workers": workers, "scheduler": scheduler, "retry": retry},
            progress=progress,
            report=report,
            console=console,
            watching=watching,
        ).go()


@dataclass
class _Loop:
    """One refinement on its way. Every stage looks first whether it has been done."""

    structure: Structure
    labeller: Labeller
    settings: RefineSettings
    config: FinetuneConfig
    out: Path
    start: Start
    data: list[Record]
    journal: Journal
    where: dict[str, Any]  # labels are computed
    progress: bool
    report: Callable[[str], None]
    console: Console | None
    watching: Watching

    def go(self) -> dict[str, Any]:
        number = 0
        while not (outcome := self._round(number)):
            number += 1
        if number or outcome == QUIET:  # else it would be the start that passes for a result
            write_atomically(self.out / MODEL, self._model_before(number).read_bytes())
        self.journal.end(outcome)
        return self.journal.told()

    def _round(self, number: int) -> str:
        """One round; how the refinement ends with it, or nothing if there is to be another."""
        files = RoundFiles(self.out, number)
        known = [row for row in self.journal.rows if row["round"] == number]
        if known and known[0]["trained"]:
            return ""
        self.journal.end("")
        seen = self._explore(number, files)
        outcome = self._outcome(number, seen)
        row: dict[str, Any] = {"round": number, "trained": False, **_summary(seen)}
        if not outcome and not self._choose(number, files):
            outcome = BROKEN
        if not outcome:
            told = self._label(number, files)
            row["frames"] |= _counts(told)
            outcome = "" if told["labelled"] else STUCK + _unlabelled(told, "flagged frame")
        if not outcome:
            row["trained"] = True
            validation = self._train(number, files)
            row["errors"] = {**self._errors(number, files), "validation": validation}
            row["training_frames"] = len(self._training_set(number))
            write_atomically(self.out / MODEL, files.model.read_bytes())
        self.journal.add(row)
        return outcome

    def _outcome(self, number: int, seen: dict[str, Any]) -> str:
        # at every temperature: heat is not all that leads a molecule out
        calm = all(r["flag_ps"] is None and not r["end"] for r in seen["replicas"])
        quiet = seen["guarded"] and calm
        # a model of another level of theory is not done, however far its simulations get
        if quiet and (number or (self.start.same_level and not self.data)):
            return QUIET
        return SPENT if number >= self.settings.rounds else ""

    def _model_before(self, number: int) -> Path:
        """The model that is simulated in a round."""
        return RoundFiles(self.out, number - 1).model if number else self.start.path

    # --- the stages --------------------------------------------------------------------------

    def _explore(self, number: int, files: RoundFiles) -> dict[str, Any]:
        if not files.explored.is_file():
            run = plan(self.settings, number, self._model_before(number))
            ladder = ", ".join(f"{t:g}" for t in np.unique(run.temperatures))
            self.report(
                f"round {number}: simulating {len(run.temperatures)} replicas for "
                f"{self.settings.ps:g} ps at {ladder} K"
                + (
                    ""
                    if run.guarded
                    else "; the start model has no guard yet, so nothing is flagged"
                )
            )
            explore(self.structure, run, self.settings, files, self.progress, self.console)
        seen = read_json(files.explored)
        flagged = [r["flag_ps"] for r in seen["replicas"] if r["flag_ps"] is not None]
        broke = sum(r["end"] not in ("", "flagged") for r in seen["replicas"])
        if flagged or broke:
            first = f", the first after {min(flagged):.3g} ps" if flagged else ""
            self.report(
                f"round {number}: {len(flagged)} of {len(seen['replicas'])} replicas were "
                f"flagged{first}; {broke} broke"
            )
        return seen

    def _choose(self, number: int, files: RoundFiles) -> int:
        """How many frames there are to label."""
        if not files.chosen.is_file():
            candidates = read_frames(files.candidates)
            potential, _ = load_potential(self._model_before(number))
            s = self.settings
            own = [r for r in self.data if sorted(r.numbers) == sorted(self.structure.numbers)]
            known = [*own, *self._labelled_before(number)]
            frames = choose(candidates, known, potential, s.frames, s.initial)
            calm = sum(frame.info["why"] == THERMAL for frame in frames)
            if not number and calm < s.initial:
                self.report(
                    f"round 0: only {calm} frames that nothing flagged, where {s.initial} were "
                    "asked for; they draw the line of the guard"
                )
            for frame in frames:
                frame.info["subset"] = f"round {number:02d}"
            write_frames(files.chosen, frames)
        return len(read_frames(files.chosen))

    def _label(self, number: int, files: RoundFiles) -> dict[str, Any]:
        if not files.labelled.is_file():
            records, store = read(files.chosen), self.out / "labels.store"
            self.report(f"round {number}: labelling {len(records)} frames, {self.labeller.level}")
            with self.watching("labelling", store) as watch:
                found = label(records, self.labeller, store, **self.where, **watch)
            told = _sorted(records, found, self.settings.max_force)
            why = [frame.info["why"] for frame in read_frames(files.chosen)]
            pairs = zip(found.records, found.indices.tolist(), strict=True)
            usable = [(r, i) for r, i in pairs if _strongest(r) <= self.settings.max_force]
            kept = [r for r, _ in usable]
            told["calm"] = [n for n, (_, i) in enumerate(usable) if why[i] == THERMAL]
            if not kept:
                if number == 0:
                    raise DataError(_unlabelled(told, "frame of the first round"))
                return told  # and no file, so that --retry computes failures again
            write_labelled(files.labels, kept)
            write_json(files.labelled, told)
        return read_json(files.labelled)

    def _train(self, number: int, files: RoundFiles) -> dict[str, Any]:
        """Validation errors of the model of this round."""
        records, calm = self._training_set(number), self._calm(number)
        self.report(f"round {number}: fine-tuning {self.start.info.name} on {len(records)} frames")
        info, _ = finetune(
            records,
            self.config,
            files.training,
            self.start.path,
            self.progress,
            self.report,
            # flagged frames are on the way out, and some of them a step from debris
            usual=lambda record: record.positions.tobytes() in calm,
        )
        if info.extrapolation is None:
            raise DataError(
                f"{len(records)} frames are too few to tell the guard what the model was trained "
                "on. Label more of them in the first round (--initial), in another folder"
            )
        return plain(info.provenance["validation"])

    def _errors(self, number: int, files: RoundFiles) -> dict[str, Any]:
        """On the frames of this round, before and after learning them."""
        records = read(files.labels)
        before, after = (load_potential(p)[0] for p in (self._model_before(number), files.model))
        return {"before": assess(before, records), "after": assess(after, records)}

    def _labelled_before(self, number: int) -> list[Record]:
        files = [RoundFiles(self.out, n).labels for n in range(number)]
        return [record for path in files for record in read(path)]

    def _training_set(self, number: int) -> list[Record]:
        return [*self.data, *self._labelled_before(number + 1)]

    def _calm(self, number: int) -> set[bytes]:
        """Positions of frames that nothing flagged: the user's, and of the first round."""
        found = {record.positions.tobytes() for record in self.data}
        for files in (RoundFiles(self.out, n) for n in range(number + 1)):
            labels, told = read(files.labels), read_json(files.labelled)
            found |= {labels[i].positions.tobytes() for i in told.get("calm", [])}
        return found


def _summary(seen: dict[str, Any]) -> dict[str, Any]:
    """What the simulations of a round showed, temperature by temperature; times in ps."""
    temperatures = sorted({r["temperature"] for r in seen["replicas"]})
    rows = []
    for t in temperatures:
        mine = [r for r in seen["replicas"] if r["temperature"] == t]
        flags = [r["flag_ps"] for r in mine if r["flag_ps"] is not None]
        rows.append(
            {
                "temperature": t,
                "replicas": len(mine),
                "flagged": len(flags),
                "broke": sum(r["end"] not in ("", "flagged") for r in mine),
                "unstable": sum(bool(r["end"]) or r["flag_ps"] is not None for r in mine),
                "first_flag_ps": min(flags, default=None),
                "stable_ps": sum(r["stable_ps"] for r in mine) / len(mine),
            }
        )
    frames = {"candidates": seen["candidates"], "rejected": len(seen["rejected"])}
    return {"guarded": seen["guarded"], "simulated": rows, "frames": frames}


def _strongest(record: Record) -> float:
    """The largest force on an atom, eV/Å."""
    assert record.forces is not None
    return float(np.linalg.norm(record.forces, axis=1).max())


def _sorted(records: Sequence[Record], found: Labelled, max_force: float) -> dict[str, Any]:
    """Which of the records have a label that can be used, and why the others have none."""
    strongest = {id(r.positions): _strongest(r) for r in found.records}  # `label` shares arrays
    forces = [(i, strongest.get(id(r.positions), 0.0)) for i, r in enumerate(records)]
    absurd = [{"frame": i, "max_force": f} for i, f in forces if f > max_force]
    return {
        "level": found.records[0].level if found.records else "",
        "frames": len(records),
        "labelled": len(found.records) - len(absurd),
        "duplicates": found.duplicates,
        "failed": [{"frame": i, "why": why} for i, why in sorted(found.failed.items())],
        "left_out": absurd,
    }


def _counts(told: dict[str, Any]) -> dict[str, int]:
    failed, left_out = (len(told[k]) for k in ("failed", "left_out"))
    return {
        "chosen": told["frames"],
        "labelled": told["labelled"],
        "failed": failed,
        "left_out": left_out,
    }


def _unlabelled(told: dict[str, Any], what: str) -> str:
    """No frame of a round has a label that can be used."""
    failed, left_out = told["failed"], len(told["left_out"])
    why = Counter(f["why"] for f in failed).most_common(1)
    reason = f"; the most frequent reason: {why[0][0].rstrip('.')}" if why else ""
    return (
        f"no {what} could be labelled: {len(failed)} failed{reason}, and {left_out} had forces "
        "beyond --max-force. Check the labeller; --retry computes failures again"
    )
