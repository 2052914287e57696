"""MLPotCalculator: any mlpot model as an ASE calculator."""

from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mlpot.deploy.engines import BoundModel, DeployedModel
from mlpot.deploy.grader import BoundGrader, FeatureGrader
from mlpot.deploy.load import load

#: a property of ours, beside those of ASE
GRADE = "extrapolation_grade"


class MLPotCalculator(Calculator):
    """Energy (eV), forces (eV/Å) and, for systems periodic in all directions, stress (eV/Å^3).

    Args:
        model: a zoo name, a model file, or a DeployedModel.
        engine: ``auto``, ``eager``, ``torchscript`` or ``compiled``.
        dtype: ``float32`` or ``float64``; None leaves the model's own.
        device: ``auto`` takes a GPU if there is one.
        guard_model: the ``.safetensors`` file that ``model`` was exported from, for grades.

    ``calc.get_property("extrapolation_grade", atoms)`` is how far each atom is from what the model
    was trained on ([N]; 1 is the line). It is evaluated only when it is asked for, or by
    `mlpot.md.guard.Guard.attach` every few steps, and is then in ``calc.results`` as well.

    The total charge is ``atoms.info["charge"]``, or the sum of the initial charges; only
    neutral closed-shell systems are covered, others raise UnsupportedSystemError.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress", GRADE]

    def __init__(
        self,
        model: str | Path | DeployedModel = "pretrained-visnet",
        engine: str = "auto",
        dtype: str | None = None,
        device: str = "auto",
        guard_model: str | Path | None = None,
    ):
        super().__init__()
        loaded = model if isinstance(model, DeployedModel) else load(model, engine, dtype, device)
        self.model = loaded
        self._bound: BoundModel | None = None
        self._key: tuple[Any, ...] = ()
        self._guard_model = loaded if guard_model is None else guard_model
        self._grader: FeatureGrader | None = None
        self._grade: BoundGrader | None = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        system: Any = self.atoms
        cell = system.cell.array if any(system.pbc) else None
        bound = self._bind(system)
        if system_changes:
            self.results = {}
        if GRADE in (properties or ()):
            self.results[GRADE] = self._graded(bound)(system.positions, cell)
            if properties == [GRADE]:
                return
        result = bound(system.positions, cell)
        self.results |= {
            "energy": result.energy,
            "free_energy": result.energy,
            "forces": result.forces,
        }
        if result.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(result.stress)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """ASE does not look at ``info``; a new charge there must not find an old energy."""
        changes = super().check_state(atoms, tol)
        if self.atoms is not None and _charge_and_spin(atoms) != _charge_and_spin(self.atoms):
            changes.append("initial_charges")
        return changes

    def _bind(self, atoms: Atoms) -> BoundModel:
        """The model for these atoms; checked again only when they change."""
        charge, multiplicity = _charge_and_spin(atoms)
        key = (atoms.numbers.tobytes(), tuple(atoms.pbc), charge, multiplicity)
        if self._bound is None or key != self._key:
            x, y, z = (bool(p) for p in atoms.pbc)
            self._bound = self.model.bind(atoms.numbers, (x, y, z), charge, multiplicity)
            self._key, self._grade = key, None
        return self._bound

    def _graded(self, bound: BoundModel) -> BoundGrader:
        """What grades these atoms; the network is loaded a second time when it is first asked."""
        if self._grader is None:
            self._grader = FeatureGrader(self._guard_model, self.model.device)
        if self._grade is None:
            self._grade = self._grader.bind(bound.numbers, bound.pbc)
        return self._grade


def _charge_and_spin(atoms: Atoms) -> tuple[float, int]:
    """Total charge and multiplicity that the Atoms ask for; unpaired spins as magnetic moments."""
    charge = float(atoms.info.get("charge", atoms.get_initial_charges().sum()))
    unpaired = round(abs(float(atoms.get_initial_magnetic_moments().sum())))
    # other packages' calculators read "spin" as the multiplicity; 0 says nothing there
    spin = int(atoms.info.get("spin", 0)) or unpaired + 1
    return charge, int(atoms.info.get("multiplicity", spin))
