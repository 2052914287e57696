"""mlpot models as OpenMM-ML potentials: ``MLPotential("pretrained-visnet")``."""

# openmmml loads every entry point while it is being imported itself. Were this package imported
# first, its factory module would import a half-made openmmml; importing openmmml here, before
# any module of ours, makes both orders the same.
import openmmml as _openmmml  # noqa: F401
