"""MLPotential("mlpot") and MLPotential("pretrained-visnet") inside OpenMM."""

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import openmm
import pytest
from ase import Atoms
from openmm import app, unit

from mlpot.deploy.export import export
from mlpot.deploy.load import load
from mlpot.errors import InputError, MissingDependencyError, UnsupportedSystemError
from mlpot.models.compiled import can_compile
from mlpot.units import EV_TO_KJ_PER_MOL
from mlpot.zoo import available_models
from tests.helpers import ethanol, methanol_with_water, save_random_model

openmmml = pytest.importorskip("openmmml")
from openmmml import MLPotential  # noqa: E402

BOX = 0.9  # nm, smaller than twice the cutoff of 5 Å


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model") / "random.safetensors")


@pytest.fixture(scope="module")
def exported(weights: Path) -> dict[str, Path]:
    """dtype -> exported model"""
    paths = {dtype: weights.with_name(f"{dtype}.pt") for dtype in ("float32", "float64")}
    for dtype, path in paths.items():
        export(weights, path, dtype=dtype)
    return paths


def topology_of(atoms: Atoms, box: float | None = None) -> app.Topology:
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for i, number in enumerate(atoms.numbers):
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(f"{element.symbol}{i}", element, residue)
    if box is not None:
        topology.setPeriodicBoxVectors(np.diag([box] * 3) * unit.nanometer)
    return topology


def evaluate(
    system: openmm.System, atoms: Atoms, platform: str = "Reference"
) -> tuple[float, np.ndarray]:
    """Energy in eV and forces in eV/Å of what OpenMM computes."""
    integrator = openmm.VerletIntegrator(0.0005)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))
    context.setPositions(atoms.positions * 0.1)
    state = context.getState(getEnergy=True, getForces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    per_length = unit.kilojoule_per_mole / unit.angstrom
    forces = state.getForces(asNumpy=True).value_in_unit(per_length)
    return energy / EV_TO_KJ_PER_MOL, forces / EV_TO_KJ_PER_MOL


def quietly(potential: MLPotential, topology: app.Topology, **options: object) -> openmm.System:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return potential.createSystem(topology, **options)


def engines() -> list[str]:
    """Both, wherever the pinned openmm-torch is installed: there it must work."""
    installed = importlib.util.find_spec("openmmtorch") is not None
    return ["torchforce", "python"] if installed else ["python"]


@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["weights", "exported"])
@pytest.mark.parametrize("box", [None, BOX])
def test_same_numbers_as_ase_and_eager(
    weights: Path,
    exported: dict[str, Path],
    engine: str,
    dtype: str,
    kind: str,
    box: float | None,
) -> None:
    model = exported[dtype] if kind == "exported" else weights
    for atoms in (ethanol(), methanol_with_water()):
        cell = None if box is None else np.eye(3) * box * 10
        want = load(weights, dtype=dtype)(atoms.numbers, atoms.positions, cell)
        assert np.abs(want.forces).max() > 0.05
        topology = topology_of(atoms, box)
        potential = MLPotential("mlpot", model=str(model))
        system = quietly(potential, topology, engine=engine, dtype=dtype)
        for platform in ("Reference", "CPU"):
            energy, forces = evaluate(system, atoms, platform)
            assert energy == pytest.approx(want.energy, abs=1e-4)  # what the two hosts may differ
            np.testing.assert_allclose(forces, want.forces, atol=5e-5)


@pytest.mark.parametrize("name", [n for n in available_models() if not n.endswith("-denoised")])
def test_every_potential_of_the_zoo_has_its_name_in_openmm(name: str) -> None:
    """The entry points of pyproject.toml are written by hand; the zoo is not."""
    atoms = ethanol()
    want = load(name, engine="eager")(atoms.numbers, atoms.positions)
    system = quietly(MLPotential(name), topology_of(atoms), engine="python")
    energy, forces = evaluate(system, atoms)
    assert energy == pytest.approx(want.energy, abs=1e-4)
    np.testing.assert_allclose(forces, want.forces, atol=5e-5)


@pytest.mark.skipif(not can_compile(), reason="no C++ compiler on this machine")
def test_the_compiled_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eager's numbers; once compiled, auto takes it; and it survives serialisation."""
    monkeypatch.setenv("MLPOT_CACHE", str(tmp_path))
    weights = save_random_model(tmp_path / "small.safetensors", layers=2, channels=8)
    atoms = ethanol()
    want = load(weights, engine="eager")(atoms.numbers, atoms.positions)
    potential, topology = MLPotential("mlpot", model=str(weights)), topology_of(atoms)
    energy, forces = evaluate(quietly(potential, topology, engine="compiled"), atoms)
    assert energy == pytest.approx(want.energy, abs=1e-4)
    np.testing.assert_allclose(forces, want.forces, atol=5e-5)

    with pytest.warns(UserWarning, match="PythonForce, because its compiled engine is there"):
        system = potential.createSystem(topology)
    copy = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    np.testing.assert_allclose(evaluate(copy, atoms)[1], want.forces, atol=5e-5)
    with pytest.raises(InputError, match="TorchForce needs weights"):
        (tmp_path / "x.pt2").write_bytes(b"")
        MLPotential("mlpot", model=str(tmp_path / "x.pt2")).createSystem(
            topology, engine="torchforce"
        )


@pytest.mark.parametrize("engine", engines())
def test_a_subset_of_the_atoms(weights: Path, engine: str) -> None:
    """Forces act on the subset alone, in its own order, and add to other forces."""
    atoms = methanol_with_water()
    subset = [6, 7, 8]  # the first water
    want = load(weights)(atoms.numbers[subset], atoms.positions[subset])
    topology = topology_of(atoms)
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    pull = openmm.CustomExternalForce("3*x")
    pull.addParticle(0)
    system.addForce(pull)
    potential = MLPotential("mlpot", model=str(weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixed = potential.createMixedSystem(topology, system, subset, engine=engine)
    _, forces = evaluate(mixed, atoms)
    np.testing.assert_allclose(forces[subset], want.forces, atol=5e-5)
    rest = [i for i in range(len(atoms)) if i not in subset]
    assert forces[0, 0] == pytest.approx(-0.3 / EV_TO_KJ_PER_MOL, rel=1e-4)
    np.testing.assert_allclose(forces[rest][1:], 0.0, atol=1e-6)


@pytest.mark.parametrize("engine", ["auto", "python"])
def test_interpolation_between_force_field_and_model(weights: Path, engine: str) -> None:
    """OpenMM-ML copies the force for this, so "auto" must not take TorchForce (it crashes)."""
    atoms = ethanol()
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(openmm.HarmonicBondForce())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixed = MLPotential("mlpot", model=str(weights)).createMixedSystem(
            topology_of(atoms), system, range(len(atoms)), interpolate=True, engine=engine
        )
    context = openmm.Context(
        mixed, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(atoms.positions * 0.1)
    energies = []
    for value in (0.0, 0.5, 1.0):
        context.setParameter("lambda_interpolate", value)
        energies.append(context.getState(getEnergy=True).getPotentialEnergy()._value)
    want = load(weights)(atoms.numbers, atoms.positions).energy * EV_TO_KJ_PER_MOL
    assert energies == pytest.approx([0.0, 0.5 * want, want], rel=1e-6, abs=1e-3)


@pytest.mark.parametrize("engine", engines())
def test_unwrapped_coordinates(weights: Path, engine: str) -> None:
    atoms = methanol_with_water()
    potential = MLPotential("mlpot", model=str(weights))
    system = quietly(potential, topology_of(atoms, BOX), engine=engine, dtype="float64")
    energy, forces = evaluate(system, atoms)
    atoms.positions[6:9] += [3 * BOX * 10, 0, -BOX * 10]
    moved, moved_forces = evaluate(system, atoms)
    assert moved == pytest.approx(energy, abs=1e-5)
    np.testing.assert_allclose(moved_forces, forces, atol=1e-5)


@pytest.mark.parametrize("engine", engines())
def test_two_models_in_one_process(weights: Path, tmp_path: Path, engine: str) -> None:
    """Another molecule after the first has crashed others upstream; so have shared states."""
    other = save_random_model(tmp_path / "other.safetensors", seed=7)
    systems = []
    for atoms, model in ((ethanol(), weights), (methanol_with_water(), other), (ethanol(), other)):
        potential = MLPotential("mlpot", model=str(model))
        systems.append((quietly(potential, topology_of(atoms), engine=engine), atoms, model))
    for system, atoms, model in [*systems, *reversed(systems)]:
        want = load(model)(atoms.numbers, atoms.positions).energy
        assert evaluate(system, atoms)[0] == pytest.approx(want, abs=1e-4)


def test_serialised_system_in_a_new_process(weights: Path, tmp_path: Path) -> None:
    atoms = ethanol()
    potential = MLPotential("mlpot", model=str(weights))
    system = potential.createSystem(topology_of(atoms), engine="python")
    want, _ = evaluate(system, atoms)
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    np.save(tmp_path / "positions.npy", atoms.positions * 0.1)
    code = (
        "import sys, numpy, openmm\n"
        "folder = sys.argv[1]\n"
        "system = openmm.XmlSerializer.deserialize(open(folder + '/system.xml').read())\n"
        "platform = openmm.Platform.getPlatformByName('Reference')\n"
        "context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)\n"
        "context.setPositions(numpy.load(folder + '/positions.npy'))\n"
        "print(repr(context.getState(getEnergy=True).getPotentialEnergy()._value))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) / EV_TO_KJ_PER_MOL == pytest.approx(want, abs=1e-6)


def test_one_notice_says_which_engine_and_why(weights: Path) -> None:
    potential = MLPotential("mlpot", model=str(weights))
    with pytest.warns(UserWarning, match="because") as caught:
        potential.createSystem(topology_of(ethanol()))
    assert len([w for w in caught if "mlpot" in str(w.message)]) == 1
    if "torchforce" in engines():  # it must say so before anyone serialises
        assert "cannot be copied or read back from XML" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential.createSystem(topology_of(ethanol()), engine="python")


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        ("raise ImportError('undefined symbol: _ZN3c10')", "undefined symbol"),
        (
            "import os\nclass TorchForce:\n    def __init__(self, *a): os._exit(139)",
            "does not work with torch",
        ),
    ],
    ids=["raises at import", "crashes at first energy"],
)
def test_broken_openmmtorch(weights: Path, tmp_path: Path, fake: str, reason: str) -> None:
    """openmmml still imports, and the model runs through PythonForce with one notice."""
    (tmp_path / "openmmtorch.py").write_text(fake + "\n")
    code = f"""
import logging, warnings
import openmmml, openmm
from openmm import app
import mlpot_openmm.force as force
force.KNOWN_GOOD = ()
topology = app.Topology()
residue = topology.addResidue("MOL", topology.addChain())
for symbol in ("O", "H", "H"):
    topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    system = openmmml.MLPotential("mlpot", model={str(weights)!r}).createSystem(topology)
print([type(f).__name__ for f in system.getForces()])
print([str(w.message) for w in caught if "mlpot" in str(w.message)])
assert logging.getLogger().level == logging.WARNING  # the user's logger is left as it was
"""
    # in front of the real one, for the process that is tried apart as well
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert "PythonForce" in done.stdout
    assert done.stdout.count("through openmm.PythonForce, because") == 1
    assert reason in done.stdout


@pytest.mark.parametrize("first", ["openmmml", "mlpot_openmm", "mlpot_openmm.factory", "torch"])
def test_import_order_does_not_matter(weights: Path, first: str) -> None:
    code = f"""
import {first}
import openmmml, mlpot_openmm.factory, mlpot_openmm.force
print("mlpot" in openmmml.MLPotential._implFactories, mlpot_openmm.force.openmmtorch_problem())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]  # and no problem with openmm-torch, in any order


def test_refusals(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = ethanol()
    potential = MLPotential("mlpot", model=str(weights))
    with pytest.raises(UnsupportedSystemError, match="neutral"):
        potential.createSystem(topology_of(atoms), charge=1)
    with pytest.raises(UnsupportedSystemError, match="closed-shell"):
        potential.createSystem(topology_of(atoms), multiplicity=2)
    with pytest.raises(InputError, match="engine must be one of"):
        potential.createSystem(topology_of(atoms), engine="cuda")
    with pytest.raises(TypeError, match="unknown option"):
        potential.createSystem(topology_of(atoms), enginee="python")
    with pytest.raises(ValueError, match="needs model="):
        MLPotential("mlpot")
    atoms.numbers[0] = 14
    with pytest.raises(UnsupportedSystemError, match="does not cover Si"):
        potential.createSystem(topology_of(atoms))
    monkeypatch.setattr("mlpot_openmm.force.openmmtorch_problem", lambda: "it is broken")
    with pytest.raises(MissingDependencyError, match="it is broken"):
        potential.createSystem(topology_of(ethanol()), engine="torchforce")


@pytest.mark.parametrize("engine", engines())
def test_a_clash_is_refused_at_the_door(weights: Path, engine: str) -> None:
    for distance in (0.0, 0.2):
        atoms = ethanol()
        potential = MLPotential("mlpot", model=str(weights))
        system = quietly(potential, topology_of(atoms), engine=engine)
        atoms.positions[1] = atoms.positions[0] + [distance, 0, 0]
        with pytest.raises(openmm.OpenMMException, match="atoms 0 and 1 overlap"):
            evaluate(system, atoms)


@pytest.mark.parametrize("engine", engines())
def test_a_close_approach_later_is_no_bad_input(weights: Path, engine: str) -> None:
    """A minimiser's trial step may bring atoms closer than anything one would start from."""
    atoms = ethanol()
    potential = MLPotential("mlpot", model=str(weights))
    system = quietly(potential, topology_of(atoms), engine=engine)
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    for distance in (1.5, 0.2):
        moved = atoms.positions.copy()
        moved[1] = moved[0] + [0, distance, 0] if distance < 1 else moved[1]
        context.setPositions(moved * 0.1)
        energy = context.getState(getEnergy=True).getPotentialEnergy()._value
        assert np.isfinite(energy)
