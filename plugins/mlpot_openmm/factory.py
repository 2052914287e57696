"""What OpenMM-ML finds under the names of the zoo's potentials, and ``mlpot``.

`import openmmml` loads this module whichever potential is asked for, so torch and mlpot are
imported only when forces are added.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import openmm
from openmm import app
from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory

#: what createSystem and createMixedSystem take on top of OpenMM-ML's own arguments
OPTIONS = ("engine", "dtype", "device", "charge", "multiplicity")


class MLPotFactory(MLPotentialImplFactory):
    """Creates `MLPotImpl`: ``MLPotential("pretrained-visnet")`` or
    ``MLPotential("mlpot", model="my.pt")``."""

    def createImpl(self, name: str, model: str | None = None, **args: Any) -> MLPotentialImpl:
        if args:
            raise TypeError(f"MLPotential({name!r}) takes model=, not {', '.join(args)}")
        if name == "mlpot" and model is None:
            raise ValueError(
                'MLPotential("mlpot") needs model=, a .safetensors, .pt or .pt2 file, or a name '
                "that `mlpot models` lists"
            )
        return MLPotImpl(str(model) if model is not None else name)


class MLPotImpl(MLPotentialImpl):
    """One mlpot model as an OpenMM force.

    Options of createSystem():

    engine: ``"compiled"`` (the fastest on a CPU; compiles the first time), ``"torchforce"`` (the
        model runs in C++ through openmm-torch), ``"python"`` (openmm.PythonForce; the System can
        be serialised), or ``"auto"``: compiled where that was done before, else torchforce where
        openmm-torch works.
    dtype: ``"float32"`` or ``"float64"``; None is the model's own.
    device: ``"auto"``, ``"cpu"``, ``"cuda"``, ...; TorchForce runs where the Context runs.
    charge, multiplicity: of the atoms that the model describes; models cover 0 and 1.
    """

    def __init__(self, model: str):
        self.model = model

    def addForces(
        self,
        topology: app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,
        **args: Any,
    ) -> None:
        from mlpot_openmm.force import make_force

        unknown = set(args) - set(OPTIONS)
        if unknown:
            raise TypeError(
                f"unknown option {', '.join(sorted(unknown))}; mlpot takes {', '.join(OPTIONS)}"
            )
        subset = None if atoms is None else [int(i) for i in atoms]
        numbers = _atomic_numbers(topology, subset)
        periodic = topology.getPeriodicBoxVectors() is not None
        force, notice = make_force(self.model, numbers, periodic, subset, **args)
        if notice:
            warnings.warn(notice, stacklevel=3)
        force.setForceGroup(forceGroup)
        system.addForce(force)

    def getMLLongRange(self) -> bool:
        """mlpot models are local: nothing beyond the cutoff, with or without a box."""
        return False


def _atomic_numbers(topology: app.Topology, subset: list[int] | None) -> list[int]:
    atoms = list(topology.atoms())
    chosen = atoms if subset is None else [atoms[i] for i in subset]
    missing = [a.index for a in chosen if a.element is None]
    if missing:
        raise ValueError(
            f"atom {missing[0]} of the topology has no element (a virtual site?); leave it out of "
            "the atoms that the model describes"
        )
    return [a.element.atomic_number for a in chosen]
