"""Statistics of a training set, for the guard of a simulation: fitted to records, kept in the
model's file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mlpot.data.loader import GraphLoader
from mlpot.data.record import Record, check_records
from mlpot.data.splits import Split, load_split, make_split, split_held_out
from mlpot.errors import DataError
from mlpot.graph import to
from mlpot.models.checkpoint import ModelInfo, load_extrapolation, load_potential, save
from mlpot.models.extrapolation import Extrapolation
from mlpot.models.extrapolation_fit import Labelled, fit
from mlpot.models.potential import Potential

#: frames that are looked at, at most; more do not move means and covariances
FRAMES = 20_000

#: of those held back, at most
HELD_BACK = 4_000


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
    return save(model, info, out or path, fitted), told


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
