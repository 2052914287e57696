"""Statistics of a training set, for the guard of a simulation: fitted to records, kept in the
model's file."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mlpot.data.loader import GraphLoader
from mlpot.data.record import Record, check_records
from mlpot.data.splits import Split, load_split, make_split, split_held_out
from mlpot.errors import DataError, InputError
from mlpot.graph import to
from mlpot.models.checkpoint import ModelInfo, load_extrapolation, load_potential, save
from mlpot.models.extrapolation import Extrapolation
from mlpot.models.extrapolation_fit import Labelled, fit
from mlpot.models.potential import Potential

#: frames that are looked at, at most; more do not move means and covariances
FRAMES = 20_000

#: of those held back, at most
HELD_BACK = 4_000

#: times the median error of usual frames: a larger one is what the guard is there to tell
#: (`benchmarks/guard` calibrates with it)
LARGE = 3.0


def fit_guard(
    model: Potential,
    training: Sequence[Record],
    held_back: Sequence[Record],
    frames: int = FRAMES,
    batch_atoms: int = 512,
    start: Extrapolation | None = None,
) -> Extrapolation:
    """Statistics of the frames that a model was trained on.

    Args:
        training: frames it was trained on, with forces.
        held_back: frames of the same kind that it was not trained on; they set the line.
        frames: of each at most so many, evenly spaced (of those held back, at most 4,000).
        start: statistics of the model that it was fine-tuned from, whose lengths it knows too.

    Raises:
        InputError: there are too few frames.
    """
    seen = _batches(model, _spread(training, frames), batch_atoms)
    others = _batches(model, _spread(held_back, min(frames, HELD_BACK)), batch_atoms)
    return fit(model, seen, others, start)


def add_missing(
    path: Path,
    records: Sequence[Record],
    split: Split,
    start: Path | None,
    usual: Callable[[Record], bool] | None,
    report: Callable[[str], None],
) -> tuple[Potential, ModelInfo]:
    """The model of a training, whose file knows from now on what it was trained on.

    Args:
        path: its file.
        records, split: what it was trained on.
        start: file of the model that it was fine-tuned from, if that has statistics.
        usual: says which frames are as the simulations are to be; those that are held back set
            the line. Of the others, as active learning finds them on the way out, only the ones
            that the model got right do. None: all set it.
        report: told, in a line, what takes long or cannot be done.
    """
    model, info = load_potential(path)
    if info.extrapolation is not None:
        return model, info
    if len(split.train) > 2000:  # minutes
        report("noting what the model was trained on, for the guard of simulations")
    train, held_back = ([records[i] for i in part] for part in (split.train, split.validation))
    if usual is not None:
        held_back = learned(model, held_back, usual)
    try:
        known = None if start is None else load_extrapolation(start)
        info = save(model, info, path, fit_guard(model, train, held_back, start=known))
    except InputError as error:
        report(f"note: simulations with this model run without a guard: {error}")
    return model, info


def learned(
    model: Potential, records: Sequence[Record], usual: Callable[[Record], bool]
) -> list[Record]:
    """The usual frames, and those that the model is no more wrong about than LARGE times their
    median. One that is torn apart would else draw the line so far out that nothing crosses it."""
    worst = _worst(model, records)
    ordinary = np.array([usual(r) for r in records], dtype=bool)
    if not len(worst):
        return []
    limit = LARGE * np.median(worst[ordinary] if ordinary.any() else worst)
    return [r for r, fine in zip(records, ordinary | (worst <= limit), strict=True) if fine]


def _worst(model: Potential, records: Sequence[Record]) -> NDArray[np.float64]:
    """The largest force error on an atom of every frame, [F] eV/Å."""
    found: list[float] = []
    for graph, forces in _batches(model.eval(), records, 512):
        error = torch.linalg.vector_norm(model(graph).forces.detach() - forces, dim=1)
        worst = error.new_zeros(graph.cell.shape[0])
        found += worst.scatter_reduce(0, graph.batch, error, "amax").tolist()
    return np.array(found)


def add_guard(
    path: Path,
    records: Sequence[Record],
    out: Path | None = None,
    held_out: str | Path | None = None,
    frames: int = FRAMES,
    start: str | Path | None = None,
) -> tuple[ModelInfo, str]:
    """Fit the statistics of the guard, and write the model with them.

    Args:
        path: a model file with an energy head.
        records: what it was trained on, or frames like those; with forces.
        out: file to write; None replaces ``path``.
        held_out: JSON file of the molecules that were not trained on. Without one, the
            split.json beside the model decides, if it is of these records, and else a tenth is
            held back at random (of the molecules, if there are ten or more).
        start: file of the model that it was fine-tuned from, whose lengths it knows too.

    Returns:
        the new description, and how the frames were split.

    Raises:
        DataError: frames without forces, or with an element that the model does not cover.
        ModelFileError: ``start`` holds no statistics.
    """
    begun = None if start is None else load_extrapolation(start)
    model, info = load_potential(path)
    records = [r for r in records if len(r.numbers) > 1]  # isolated atoms have no forces
    check_records(records, need_energy=False, need_forces=True)
    unknown = {int(z) for r in records for z in r.numbers} - set(info.elements)
    if unknown:
        raise DataError(
            f"the data hold elements that {info.name} does not cover (atomic numbers "
            f"{', '.join(map(str, sorted(unknown)))}), so it was not trained on them. Give its own "
            "training frames"
        )
    split, told = _split(path, records, held_out)
    training, held_back = ([records[i] for i in part] for part in (split.train, split.validation))
    fitted = fit_guard(model, training, held_back, frames, start=begun)
    return save(model, info, out or path, fitted, added_to=info.weights_sha256), told


def _split(path: Path, records: Sequence[Record], held_out: str | Path | None) -> tuple[Split, str]:
    if held_out is not None:
        return split_held_out(records, held_out), f"split by {Path(held_out).name}"
    beside = path.parent / "split.json"
    if beside.is_file():
        try:
            split = load_split(beside, records)
            if len(split.validation):
                return split, "split as in training"
        except DataError:  # of other data
            pass
    by = "group" if len({r.group for r in records}) >= 10 else "frame"
    return make_split(records, validation=0.1, test=0, by=by), f"a tenth held back, by {by}"


def _spread(records: Sequence[Record], count: int) -> Sequence[Record]:
    """At most ``count`` records, evenly spaced."""
    return records[:: max(1, -(-len(records) // count))]


def _batches(model: Potential, records: Sequence[Record], atoms: int) -> Iterator[Labelled]:
    if not records:
        return
    dtype, device = model.scale.dtype, model.scale.device
    for batch in GraphLoader(records, model.cutoff, atoms, shuffle=False, dtype=dtype):
        yield to(batch.graph, device, dtype), batch.forces.to(device)
