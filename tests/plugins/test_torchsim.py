"""mlpot in TorchSim: the numbers of DeployedModel, dynamics that conserve energy, refusals."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from mlpot.deploy.engines import DeployedModel
from mlpot.deploy.load import load
from mlpot.errors import InputError, UnsupportedSystemError
from mlpot.units import ACCELERATION, BOLTZMANN
from tests.helpers import ethanol, methanol_with_water

try:
    import torch_sim as ts
except ImportError as error:
    pytest.skip(f"needs torch-sim-atomistic ({error})", allow_module_level=True)

from mlpot_torchsim import MLPotModel

#: of TorchSim's metal units: a time of 1 is sqrt(amu Å^2 / eV), about 10.18 fs
FEMTOSECOND = ACCELERATION**0.5


@pytest.fixture(scope="module")
def eager() -> DeployedModel:
    return load("pretrained-visnet", "eager", "float64", "cpu")


def boxed(atoms: Atoms, cell: object) -> Atoms:
    atoms = atoms.copy()
    atoms.set_cell(cell)
    atoms.pbc = True
    return atoms


MOLECULES = [ethanol(), molecule("H2O"), methanol_with_water()]
# smaller than twice the cutoff, triclinic, and with coordinates outside the box
BOXES = [
    boxed(methanol_with_water(), [[7.5, 0, 0], [1.2, 8.0, 0], [0.4, -0.9, 7.7]]),
    boxed(molecule("H2O"), [4, 4.5, 5]),
]
BOXES[1].positions += [13.0, -9.0, 0.3]


@pytest.mark.parametrize("batch", [MOLECULES, BOXES, BOXES[1:]])
@pytest.mark.parametrize("engine", ["eager", "torchscript"])
def test_the_numbers_of_the_deployed_model(
    eager: DeployedModel, batch: list[Atoms], engine: str
) -> None:
    periodic = bool(batch[0].pbc.all())
    model = MLPotModel(engine=engine, dtype="float64", device="cpu", compute_stress=periodic)
    state = ts.io.atoms_to_state(batch, model.device, model.dtype)
    for _ in range(2):  # the second time with the neighbour lists of the first
        with torch.no_grad():  # as a caller may
            found = model(state)
        first = 0
        for r, atoms in enumerate(batch):
            cell = atoms.cell.array if periodic else None
            wanted = eager(atoms.numbers, atoms.positions, cell)
            forces = found["forces"][first : first + len(atoms)].numpy()
            first += len(atoms)
            assert float(found["energy"][r]) == pytest.approx(wanted.energy, abs=1e-7)
            assert forces == pytest.approx(wanted.forces, abs=1e-7)
            if periodic:
                assert found["stress"][r].numpy() == pytest.approx(wanted.stress, abs=1e-8)
    assert ("stress" in found) == periodic
    assert all(v.dtype == torch.float64 and not v.requires_grad for v in found.values())


def test_stress_is_the_strain_derivative(eager: DeployedModel) -> None:
    """So the cell's convention (columns there, rows here) is the right way round."""
    model = MLPotModel(eager, compute_stress=True)
    box = BOXES[0]
    stress = model(ts.io.atoms_to_state([box], model.device, model.dtype))["stress"][0].numpy()
    for i, j in ((0, 0), (1, 2)):
        energies = []
        for strain in (1e-4, -1e-4):
            deformation = np.eye(3)
            deformation[i, j] += strain / 2
            deformation[j, i] += strain / 2
            strained = box.copy()
            strained.set_cell(box.cell.array @ deformation, scale_atoms=True)
            state = ts.io.atoms_to_state([strained], model.device, model.dtype)
            energies.append(float(model(state)["energy"][0]))
        slope = (energies[0] - energies[1]) / 2e-4 / box.get_volume()
        assert stress[i, j] == pytest.approx(slope, abs=1e-6)


def test_dynamics_conserve_energy() -> None:
    """Constant energy through TorchSim's own velocity Verlet, float32 model, float64 state."""
    model = MLPotModel(dtype="float32", device="cpu")
    assert model.dtype == torch.float64 and model.model.dtype == torch.float32
    state = ts.io.atoms_to_state([ethanol(), molecule("CH3OH")], model.device, model.dtype)
    kt, dt = torch.tensor(300 * BOLTZMANN), torch.tensor(0.25 * FEMTOSECOND)
    step, state = nve(model, state, kt.double(), dt.double())
    total, kinetic = [], []
    for _ in range(200):
        state = step(state)
        heat = (state.momenta**2).sum(1) / (2 * state.masses)
        kinetic.append([float(heat[:9].sum()), float(heat[9:].sum())])
        total.append(state.energy.numpy() + kinetic[-1])
    assert np.ptp(np.array(kinetic), axis=0).min() > 0.1
    assert np.std(np.array(total), axis=0).max() < 2e-3


def nve(model, state, kt, dt):
    """A step function and the state that it starts from, in either API of TorchSim."""
    if hasattr(ts, "nve_init"):
        return (lambda s: ts.nve_step(s, model, dt=dt)), ts.nve_init(state, model, kT=kt)
    from torch_sim.integrators import nve as make

    start, update = make(model, dt=dt, kT=kt, seed=1)
    return update, start(state)


def test_systems_may_change_places_and_leave(eager: DeployedModel) -> None:
    """As TorchSim's batching does; neighbour lists must not stay behind."""
    model = MLPotModel(eager)
    one, two = ethanol(), ethanol()
    two.positions[:, 0] *= 1.4
    for batch in ([one, two], [two, one], [two], [molecule("H2O"), two]):
        state = ts.io.atoms_to_state(batch, model.device, model.dtype)
        energies = [eager(a.numbers, a.positions).energy for a in batch]
        assert model(state)["energy"].numpy() == pytest.approx(energies, abs=1e-7)


def test_refused(eager: DeployedModel) -> None:
    model = MLPotModel(eager)

    def call(*batch: Atoms) -> None:
        model(ts.io.atoms_to_state(list(batch), model.device, model.dtype))

    with pytest.raises(UnsupportedSystemError, match="does not cover U"):
        call(ethanol(), Atoms("U"))
    close = molecule("H2O")
    close.positions[1] = close.positions[0] + 0.05
    with pytest.raises(InputError, match="overlap"):
        call(ethanol(), close)
    model.compute_stress = True
    with pytest.raises(UnsupportedSystemError, match="compute_stress=False"):
        call(ethanol())
    with pytest.raises(InputError, match="state_dtype"):
        MLPotModel(eager, state_dtype="float16")


def test_charged_states_are_refused(eager: DeployedModel) -> None:
    model = MLPotModel(eager)
    state = ts.io.atoms_to_state([molecule("H2O")], model.device, model.dtype)
    state.charge = torch.ones(1)
    with pytest.raises(UnsupportedSystemError, match="neutral"):
        model(state)


def test_importing_the_package_is_cheap() -> None:
    code = "import mlpot_torchsim, sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "mlpot", "torch_sim"}.isdisjoint(out.stdout.split())
