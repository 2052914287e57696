"""Errors on labelled frames, beside stability: a small error does not make a stable simulation."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlpot.analysis.records import Json
from mlpot.analysis.subjects import CalculatorModel, Subject
from mlpot.data.record import Record, formula
from mlpot.data.splits import fingerprint
from mlpot.deploy.metadata import check_system
from mlpot.errors import UnsupportedSystemError
from mlpot.graph import batch
from mlpot.neighbors import build_graph

#: frames of one call of the model
FRAMES = 50

#: pairs of reference and prediction kept of each quantity, for a parity plot
PAIRS = 1000


@dataclass(frozen=True, eq=False)
class Accuracy:
    """One set of labelled frames, for one subject."""

    subject: Subject
    name: str
    records: tuple[Record, ...]

    @property
    def key(self) -> str:
        content = f"{self.name} {fingerprint(self.records)}"
        if boxes := [(r.pbc, np.asarray(r.cell).tolist()) for r in self.records if any(r.pbc)]:
            content += str(boxes)
        charges = [r.charge for r in self.records]
        content += str(charges if any(charges) else [])
        forces = [r.forces for r in self.records]
        told = [b"none" if f is None else np.asarray(f, "<f8").tobytes() for f in forces]
        content += hashlib.sha256(b"".join(told)).hexdigest()
        return f"accuracy-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def run_accuracy(job: Accuracy) -> Json:
    """A record with errors in meV (whole structures) and meV/Å.

    Energies are compared less their mean difference within each composition: levels of theory
    differ by reference energies, which say nothing of a potential. Compositions with one frame
    are left out of that. The record: ``name``, ``level``, ``frames``; ``energy_mae``,
    ``energy_rmse``, ``force_mae``, ``force_rmse`` (None without labels); ``energies`` and
    ``forces``, each [reference, prediction] of at most 1,000 numbers (eV less the mean of the
    composition; eV/Å); up to that, energies are in the order of the frames, so that a scan can
    be drawn.
    """
    energies, forces = predict(job.subject, job.records)
    energy = _energy_pairs(job.records, energies)
    labelled = [(r.forces, f) for r, f in zip(job.records, forces, strict=True)]
    force = [(a.ravel(), b.ravel()) for a, b in labelled if a is not None]
    pairs = np.stack([np.concatenate(x) for x in zip(*force, strict=True)]) if force else None
    return {
        "records": [
            {
                "kind": "accuracy",
                "key": job.key,
                "name": job.name,
                "level": job.records[0].level,
                "frames": len(job.records),
                **_errors("energy", energy),
                **_errors("force", pairs),
                "energies": _kept(energy),
                "forces": _kept(pairs),
            }
        ]
    }


def predict(
    subject: Subject, records: Sequence[Record]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Energies [frames] eV, and forces [N, 3] eV/Å of each.

    Raises:
        UnsupportedSystemError: an element that is not covered, a frame that gives a NaN, or a
            periodic one for a calculator.
    """
    model = subject.open()
    if isinstance(model, CalculatorModel):
        return _ask(model, records)
    energies: list[float] = []
    forces: list[NDArray[np.float64]] = []
    for start in range(0, len(records), FRAMES):
        part = records[start : start + FRAMES]
        for record in part:
            check_system(model.info, record.numbers, record.charge)
        graphs = [
            build_graph(r.numbers, r.positions, model.cutoff, r.cell, r.pbc, model.dtype)
            for r in part
        ]
        found = model.predict(batch(graphs))
        energies += found.energy.detach().cpu().double().tolist()
        sizes = np.cumsum([len(r.numbers) for r in part])[:-1]
        forces += np.split(found.forces.detach().cpu().double().numpy(), sizes)
    bad = next((i for i, e in enumerate(energies) if not np.isfinite(e)), None)
    if bad is not None:
        raise UnsupportedSystemError(
            f"frame {bad} cannot be computed: the energy is not a finite number"
        )
    return np.array(energies), forces


def _ask(
    model: CalculatorModel, records: Sequence[Record]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """`predict` of a calculator, which is told the charge."""
    energies, forces = [], []
    for i, record in enumerate(records):
        if any(record.pbc):
            raise UnsupportedSystemError(
                f"frame {i} is periodic, and calculators are asked for molecules here. Leave "
                "such frames out"
            )
        try:
            energy, force = model.evaluate(record.numbers, record.positions, record.charge)
        except Exception as error:  # calculators raise whatever they like
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
            raise UnsupportedSystemError(f"frame {i} cannot be computed: {why}") from error
        energies.append(energy)
        forces.append(force)
    return np.array(energies), forces


def _energy_pairs(
    records: Sequence[Record], predicted: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """[2, frames] eV, both less their mean over frames of the same composition."""
    by_formula: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        if record.energy is not None:
            by_formula[formula(record.numbers)].append(i)
    chosen = sorted(i for members in by_formula.values() if len(members) > 1 for i in members)
    if not chosen:
        return None
    pairs = np.array([[records[i].energy for i in chosen], predicted[chosen]], dtype=np.float64)
    names = np.array([formula(records[i].numbers) for i in chosen])
    for name in set(names.tolist()):
        same = names == name
        pairs[:, same] -= pairs[:, same].mean(axis=1, keepdims=True)
    return pairs


def _errors(name: str, pairs: NDArray[np.float64] | None) -> Json:
    """Mean absolute and root-mean-square difference, in thousandths."""
    if pairs is None:
        return {f"{name}_mae": None, f"{name}_rmse": None}
    off = 1000 * (pairs[1] - pairs[0])
    return {
        f"{name}_mae": float(np.abs(off).mean()),
        f"{name}_rmse": float(np.sqrt((off**2).mean())),
    }


def _kept(pairs: NDArray[np.float64] | None) -> list[list[float]] | None:
    if pairs is None:
        return None
    every = -(-pairs.shape[1] // PAIRS)
    return np.round(pairs[:, ::every], 5).tolist()
