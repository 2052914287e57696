"""Every engine x dtype x {fresh, reloaded} gives eager's numbers, at odd and even sizes."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpot.deploy.compiled import Only
from mlpot.deploy.engines import DTYPES, DeployedModel
from mlpot.deploy.export import export
from mlpot.deploy.load import load, read_exported
from mlpot.deploy.selfcheck import deviation
from mlpot.deploy.standalone import standalone
from mlpot.errors import ExportError, InputError, ModelFileError, UnknownModelError
from mlpot.graph import Graph
from mlpot.models.checkpoint import load_potential
from mlpot.models.potential import Prediction
from mlpot.models.scripting import script
from mlpot.models.tracing import trace_potential
from mlpot.zoo import resolve
from tests.helpers import ethanol, methanol_with_water, save_random_model

TOLERANCE = {"float32": 2e-5, "float64": 1e-10}  # eV/Å, rounding of sums over ~100 edges


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model") / "random.safetensors")


@pytest.fixture(scope="module", params=["float32", "float64"])
def exported(request: pytest.FixtureRequest, weights: Path) -> tuple[Path, str]:
    path = weights.with_name(f"{request.param}.pt")
    export(weights, path, dtype=request.param)
    return path, request.param


def _structures() -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    odd, even = ethanol(), methanol_with_water()
    assert len(odd) % 2 == 1 and len(even) % 2 == 0
    box = np.diag([7.0, 8.0, 6.5])  # smaller than twice the cutoff
    return [(a.numbers, a.positions, c) for a in (odd, even) for c in (None, box)]


def _fresh_script(weights: Path, dtype: str) -> DeployedModel:
    return load(weights, engine="torchscript", dtype=dtype)


@pytest.mark.parametrize("kind", ["eager", "script", "script again", "exported", "copied"])
def test_engines_agree_with_eager(
    weights: Path, exported: tuple[Path, str], kind: str, tmp_path: Path
) -> None:
    path, dtype = exported
    eager = load(weights, engine="eager", dtype=dtype)
    if kind == "eager":  # the yardstick itself: float64 is the truth
        model, eager = eager, load(weights, dtype="float64")
    elif kind == "script":
        model = _fresh_script(weights, dtype)
    elif kind == "script again":
        model = _fresh_script(weights, dtype)
        buffer = io.BytesIO()
        torch.jit.save(model.module, buffer)
        buffer.seek(0)
        model = DeployedModel(torch.jit.load(buffer), model.info, "torchscript", DTYPES[dtype])
    elif kind == "exported":
        model = load(path)
        assert model.engine == "torchscript" and model.dtype == DTYPES[dtype]
    else:
        copy = tmp_path / "elsewhere.pt"
        copy.write_bytes(path.read_bytes())
        model = load(copy)
    atol = 2e-4 if kind == "eager" and dtype == "float32" else TOLERANCE[dtype]
    for numbers, positions, cell in _structures():
        want = eager(numbers, positions, cell)
        assert np.abs(want.forces).max() > 0.05  # a model of zeros would pass everything
        for _ in range(3):  # torch.jit optimises after the first calls
            got = model(numbers, positions, cell)
            np.testing.assert_allclose(got.forces, want.forces, atol=atol, rtol=0)
            assert got.energy == pytest.approx(want.energy, abs=atol * len(numbers), rel=0)
            if cell is None:
                assert got.stress is None
            else:
                np.testing.assert_allclose(got.stress, want.stress, atol=atol, rtol=0)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("scripted", [False, True])
def test_standalone_finds_the_same_neighbours(
    weights: Path, exported: tuple[Path, str], periodic: bool, scripted: bool
) -> None:
    path, dtype = exported
    model = load(path if scripted else weights, dtype=dtype)
    for numbers, positions, cell in _structures():
        if (cell is not None) != periodic:
            continue
        module = torch.jit.script(standalone(model, numbers, periodic))
        box = torch.zeros(3, 3) if cell is None else torch.as_tensor(cell)
        # unwrapped coordinates: whole molecules shifted by a lattice vector
        moved = positions if cell is None else positions + cell[1]
        energy, forces = module(torch.as_tensor(moved), box.double())
        want = model(numbers, positions, cell)
        assert float(energy) == pytest.approx(want.energy, abs=1e-4 if dtype == "float32" else 1e-8)
        np.testing.assert_allclose(forces.numpy(), want.forces, atol=20 * TOLERANCE[dtype])


@pytest.mark.parametrize("periodic", [False, True])
def test_standalone_records_nothing_for_autograd(weights: Path, periodic: bool) -> None:
    """OpenMM-Torch freezes the module, which drops every detach(), and wants a gradient for its
    positions: all of a step was recorded, and took half as long again."""
    model, atoms = load(weights, engine="torchscript"), ethanol()
    module = standalone(model, atoms.numbers, periodic).eval()
    frozen = torch.jit.freeze(torch.jit.script(module))
    positions = torch.as_tensor(atoms.positions).requires_grad_(True)
    cell = torch.eye(3, dtype=torch.float64) * (8.0 if periodic else 0.0)
    want = model(atoms.numbers, atoms.positions, cell.numpy() if periodic else None)
    for _ in range(3):  # torch.jit optimises after the first calls
        energy, forces = frozen(positions, cell)
        assert not energy.requires_grad and not forces.requires_grad
        np.testing.assert_allclose(forces.numpy(), want.forces, atol=20 * TOLERANCE["float32"])


def test_standalone_beyond_all_pairs(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(weights, dtype="float64")
    atoms = methanol_with_water()
    want = model(atoms.numbers, atoms.positions)
    monkeypatch.setattr("mlpot.deploy.standalone.ALL_PAIRS", 4)
    energy, forces = standalone(model, atoms.numbers, False)(
        torch.as_tensor(atoms.positions), torch.zeros(3, 3)
    )
    assert float(energy) == pytest.approx(want.energy, abs=1e-9)
    np.testing.assert_allclose(forces.numpy(), want.forces, atol=1e-10)


def test_description_travels_inside_the_file(exported: tuple[Path, str], weights: Path) -> None:
    path, dtype = exported
    info = read_exported(path)[1]
    assert info.dtype == dtype
    assert info.model == load_potential(weights)[1]
    assert 0 <= info.force_deviation < 1e-3


def test_export_refuses_a_wrong_model(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self-check must be able to fail: a compiled model that is off by a constant."""

    def off(potential: torch.nn.Module) -> torch.jit.ScriptModule:
        wrong, _ = load_potential(weights)
        wrong = wrong.to(potential.scale.dtype)
        wrong.reference_energies += 0.01
        return script(wrong)

    monkeypatch.setattr("mlpot.deploy.export.script", off)
    out = tmp_path / "wrong.pt"
    with pytest.raises(ExportError, match="differs from eager"):
        export(weights, out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["energy", "forces", "virial"])
def test_the_check_sees_every_wrong_number(weights: Path, wrong: str) -> None:
    good, info = load_potential(weights)
    good = good.double()

    def candidate(graph: Graph) -> Prediction:
        prediction = good(graph)
        value = getattr(prediction, wrong).detach().clone()
        value[0] += 0.01
        return prediction._replace(**{wrong: value})

    assert max(deviation(good, good, info.elements, torch.float64)) == 0.0
    found = deviation(candidate, good, info.elements, torch.float64)
    assert max(found.energy, found.force) > 0.0099 and found.excess > 1e3


def test_a_target_that_cannot_be_written_is_refused_first(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "folder.pt", tmp_path / "file" / "model.pt"):
        with pytest.raises(InputError, match=f"{re.escape(str(out))} cannot be written"):
            export(weights, out)


def test_deviation_sees_nan(weights: Path) -> None:
    good, info = load_potential(weights)
    bad, _ = load_potential(weights)
    with torch.no_grad():
        next(iter(bad.parameters())).fill_(float("nan"))
    assert np.isnan(deviation(bad, good, info.elements, torch.float32)).all()


def test_bad_requests(weights: Path, exported: tuple[Path, str], tmp_path: Path) -> None:
    path, dtype = exported
    other = "float64" if dtype == "float32" else "float32"
    with pytest.raises(UnknownModelError, match="there are:"):
        load("no-such-model")
    with pytest.raises(UnknownModelError, match="no model file at"):
        load(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="engine must be"):
        load(weights, engine="onnx")
    with pytest.raises(InputError, match="safetensors weights"):
        load(path, engine="eager")
    with pytest.raises(InputError, match="export it again"):
        load(path, dtype=other)
    with pytest.raises(InputError, match="float32 or float64"):
        load(weights, dtype="float16")
    with pytest.raises(InputError, match="torchscript"):
        export(weights, tmp_path / "x.pt", format="onnx")
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelFileError, match="truncated"):
        load(truncated)
    plain = tmp_path / "plain.pt"
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(plain))
    with pytest.raises(ModelFileError, match="not exported by mlpot"):
        load(plain)


def test_rounding_of_the_shipped_weights_passes_the_self_check() -> None:
    """In float32, with sums in the order of the compiled engine: the elements and distances of the
    check are at random, so forces are thousands of eV/Å."""
    potential = load_potential(resolve("pretrained-visnet"))[0].eval()
    traced = trace_potential(potential)
    found = deviation(
        Only("one", lambda inputs: traced(*inputs)), potential, potential.elements, torch.float32
    )
    # half of what is let pass: another processor rounds otherwise
    assert found.energy > 0 and found.force > 0 and found.excess < 0.5
