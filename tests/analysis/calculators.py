"""ASE calculators by import path: springs that hold, and some that do not."""

import itertools
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes


class Harmonic(Calculator):
    """Springs between all pairs of atoms, at rest at their distances in ASE's molecules.

    Args:
        spring: eV/Å²; negative ones push away from rest.
        nan_after: calls after which it gives NaN; 0 never.
        fail_after: calls after which it raises; 0 never.
        fail_at: of all calls of the class (``calls``), the one at which it raises; 0 none.

    Attributes:
        repaired: of the class; it raises no more.
    """

    implemented_properties = ["energy", "forces"]
    calls = 0
    repaired = False

    def __init__(
        self, spring: float = 20.0, nan_after: int = 0, fail_after: int = 0, fail_at: int = 0
    ):
        super().__init__()
        self.spring, self.nan_after = spring, nan_after
        self.fail_after, self.fail_at = fail_after, fail_at
        self.rest: dict[str, Any] = {}
        self.count = itertools.count(1)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        call = next(self.count)
        Harmonic.calls += 1
        fails = Harmonic.calls == self.fail_at or (self.fail_after and call > self.fail_after)
        if fails and not Harmonic.repaired:
            raise RuntimeError("the SCF has not converged")
        x = self.atoms.positions
        arms = x[:, None] - x[None]
        distance = np.linalg.norm(arms, axis=2) + np.eye(len(x))
        rest = self.rest.setdefault(self.atoms.symbols.get_chemical_formula(), distance)
        off = distance - rest
        energy = 0.25 * self.spring * (off**2).sum()
        forces = -(self.spring * (off / distance)[:, :, None] * arms).sum(axis=1)
        if self.nan_after and call > self.nan_after:
            energy = np.nan
        self.results = {"energy": energy, "forces": forces}


class Lost(Calculator):
    """Raises for every molecule, for a reason of its own."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, *given: Any, **more: Any) -> None:
        raise RuntimeError("the disk is full")


class Charged(Calculator):
    """The energy is the charge, in eV."""

    implemented_properties = ["energy", "forces"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        charge = float(self.atoms.get_initial_charges().sum())
        self.results = {"energy": charge, "forces": np.zeros((len(self.atoms), 3))}
