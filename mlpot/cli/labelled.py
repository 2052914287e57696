"""Labelled frames that a model is to be compared with: what would give meaningless errors."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlpot.data.record import Record
    from mlpot.deploy.engines import DeployedModel


def check_labelled(records: "list[Record]", model: "DeployedModel | None") -> None:
    """Refuse before anything is computed.

    Args:
        model: None for a calculator, which says itself what it covers, and whose energies have
            any zero.

    Raises:
        DataError: no frames, no labels, wrong units, or what `check_records` finds.
        UnsupportedSystemError: a frame that the model does not cover.
    """
    from mlpot.data.record import check_records
    from mlpot.deploy.metadata import check_system
    from mlpot.errors import DataError, UnsupportedSystemError

    check_records(records, need_energy=False, need_forces=False, allow_charged=model is None)
    if all(r.energy is None and r.forces is None for r in records):
        raise DataError(
            "no frame has an energy or forces, so there is nothing to compare with. Give files "
            "of labelled structures, and the names of their labels (--energy-key, --forces-key)"
        )
    if model is None:
        return
    for index, record in enumerate(records):
        try:
            check_system(model.info, record.numbers, record.charge)
        except UnsupportedSystemError as error:
            raise UnsupportedSystemError(f"frame {index} ({record.subset}): {error}") from error
    _check_units(records, model)


def _check_units(records: "list[Record]", model: "DeployedModel") -> None:
    """By the model's own energies as well, which cost something, where there is a suspicion."""
    from mlpot.data.loader import GraphLoader
    from mlpot.data.references import check_units
    from mlpot.errors import DataError

    references = model.info.reference_energies
    try:
        check_units(records, references)
    except DataError:
        told = [r for r in records if r.energy is not None]  # or a sample might hold none
        sample = told[:: max(1, len(told) // 200)]
        batches = GraphLoader(sample, model.cutoff, shuffle=False, dtype=model.dtype)
        energies = [float(e) for batch in batches for e in model.predict(batch.graph).energy]
        check_units(sample, references, energies)
