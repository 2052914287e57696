"""ASE calculators for programs that bring none: AIMNet2 from TorchScript, PySCF, RDKit's MMFF94."""

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from mlpot.errors import InputError, UnsupportedSystemError, require
from mlpot.units import BOHR_TO_ANGSTROM, HARTREE_TO_EV, KCAL_PER_MOL_TO_EV


def total_charge(atoms: Atoms) -> int:
    """``atoms.info["charge"]``, else the sum of the initial charges."""
    return round(float(atoms.info.get("charge", atoms.get_initial_charges().sum())))


class _Molecular(Calculator):
    """Energy and forces of an isolated molecule."""

    implemented_properties = ["energy", "free_energy", "forces"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        molecule: Any = self.atoms
        if any(molecule.pbc):
            raise UnsupportedSystemError(
                f"{type(self).__name__} takes isolated molecules only. Set pbc to False"
            )
        self.results = self._compute(molecule)
        self.results["free_energy"] = self.results["energy"]

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """ASE does not look at ``info``; a new charge there must not find an old energy."""
        changes = super().check_state(atoms, tol)
        if self.atoms is not None and total_charge(atoms) != total_charge(self.atoms):
            changes.append("initial_charges")
        return changes

    def _compute(self, atoms: Atoms) -> dict[str, Any]:
        raise NotImplementedError


class AIMNet2(_Molecular):
    """AIMNet2 from a TorchScript file (.jpt), as the authors and Auto3D distribute it.

    Anstine, Zubatyuk, Isayev, Chem. Sci. 16, 10228 (2025). Neutral or charged closed-shell
    molecules of H B C N O F Si P S Cl As Se Br I. Single precision. From an ensemble file come
    also ``energy_std`` (eV) and ``forces_std`` ([N, 3] eV/Å), the members' standard deviations,
    whichever of them it returns.

    Args:
        model: the .jpt file, single model or ensemble.
        device: cpu, cuda, ...
    """

    ELEMENTS = frozenset({1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 33, 34, 35, 53})

    def __init__(self, model: str | Path, device: str = "cpu"):
        super().__init__()
        torch = require("torch", "torch", "AIMNet2")
        if not Path(model).is_file():
            raise InputError(f"AIMNet2: no such file: {model}. Give the path of a .jpt file")
        try:
            self.network = torch.jit.load(str(model), map_location=device).eval()
        except RuntimeError as error:
            raise InputError(
                f"{model} is no TorchScript file, or it is truncated. Download it again"
            ) from error
        self.device = device
        # The profiling executor compiles anew for every number of atoms, which takes minutes.
        torch.jit.set_fusion_strategy([("STATIC", 0), ("DYNAMIC", 0)])

    def _compute(self, atoms: Atoms) -> dict[str, Any]:
        import torch

        if unknown := set(atoms.numbers.tolist()) - self.ELEMENTS:
            raise UnsupportedSystemError(
                f"AIMNet2 does not know the elements {sorted(unknown)} (atomic numbers). Use "
                "another labeller for these"
            )
        coord = torch.tensor(atoms.positions[None], dtype=torch.float32, device=self.device)
        data = {
            "coord": coord.requires_grad_(),
            "numbers": torch.tensor(atoms.numbers[None], dtype=torch.int64, device=self.device),
            "charge": torch.tensor([float(total_charge(atoms))], device=self.device),
        }
        out = self.network(data)
        if "forces" not in out:  # a file of energies only
            (gradient,) = torch.autograd.grad(out["energy"].sum(), coord)
            out["forces"] = -gradient
        results: dict[str, Any] = {}
        for name in ("energy", "energy_std"):  # files differ in which deviations they return
            if name in out:
                results[name] = float(out[name].detach())
        for name in ("forces", "forces_std"):
            if name in out:
                results[name] = out[name][0].detach().cpu().numpy().astype(np.float64)
        return results


class PySCF(_Molecular):
    """Kohn-Sham DFT or Hartree-Fock by PySCF, closed shell.

    Args:
        xc: functional, as PySCF names it, or hf.
        basis: basis set, as PySCF names it.
        grid: DFT grid level, 0 to 9.
        density_fit: approximate two-electron integrals by an auxiliary basis.
        conv_tol: SCF threshold, hartree.
        max_cycle: SCF iterations.
    """

    def __init__(
        self,
        xc: str,
        basis: str,
        grid: int = 3,
        density_fit: bool = False,
        conv_tol: float = 1e-9,
        max_cycle: int = 100,
    ):
        super().__init__()
        require("pyscf", "mlpot[pyscf]", "PySCF")
        self.xc, self.basis, self.grid = xc, basis, grid
        self.density_fit, self.conv_tol, self.max_cycle = density_fit, conv_tol, max_cycle

    def _compute(self, atoms: Atoms) -> dict[str, Any]:
        gto, dft, scf = (
            require(f"pyscf.{m}", "mlpot[pyscf]", "PySCF") for m in ("gto", "dft", "scf")
        )
        pairs = zip(atoms.get_chemical_symbols(), atoms.positions.tolist(), strict=True)
        molecule = gto.M(
            atom=list(pairs), basis=self.basis, charge=total_charge(atoms), spin=0, verbose=0
        )
        field: Any
        if self.xc.lower() == "hf":
            field = scf.RHF(molecule)
        else:
            field = dft.RKS(molecule, xc=self.xc)
            field.grids.level = self.grid
        if self.density_fit:
            field = field.density_fit()
        field.conv_tol, field.max_cycle = self.conv_tol, self.max_cycle
        energy = field.kernel()
        if not field.converged:
            raise RuntimeError(f"the SCF has not converged in {self.max_cycle} cycles")
        gradient = field.nuc_grad_method().kernel()
        return {
            "energy": float(energy) * HARTREE_TO_EV,
            "forces": np.asarray(gradient) * -(HARTREE_TO_EV / BOHR_TO_ANGSTROM),
        }


class MMFF(_Molecular):
    """MMFF94 by RDKit, for one molecule whose bonds it knows. For sampling, not for labels.

    Args:
        molecule: RDKit molecule with hydrogens and a conformer.

    Raises:
        UnsupportedSystemError: MMFF94 has no parameters for it.
    """

    def __init__(self, molecule: Any):
        super().__init__()
        chem = require("rdkit.Chem.AllChem", "mlpot[chem]", "MMFF94")
        properties = chem.MMFFGetMoleculeProperties(molecule)
        if properties is None:
            raise UnsupportedSystemError(
                "MMFF94 has no parameters for it. Sample with another calculator"
            )
        self.field = chem.MMFFGetMoleculeForceField(molecule, properties)
        self.field.Initialize()

    def _compute(self, atoms: Atoms) -> dict[str, Any]:
        flat = atoms.positions.ravel().tolist()
        # In this order: RDKit's gradient uses distances that only its energy brings up to date.
        energy = self.field.CalcEnergy(flat)
        gradient = np.array(self.field.CalcGrad(flat)).reshape(-1, 3)
        return {"energy": energy * KCAL_PER_MOL_TO_EV, "forces": -gradient * KCAL_PER_MOL_TO_EV}
