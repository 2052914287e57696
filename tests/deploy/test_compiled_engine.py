"""The compiled engine as users meet it: load, export, cache, and what it refuses."""

import os
import pickle
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor.package import load_package

from mlpot import MLPotCalculator
from mlpot.deploy.compiled import SHARED_ATOMS, CompiledPotential, compile_variant, is_cached
from mlpot.deploy.export import export
from mlpot.deploy.load import load, starts_compiled
from mlpot.deploy.metadata import ENTRY
from mlpot.deploy.standalone import standalone
from mlpot.errors import CompileError, InputError, ModelFileError
from mlpot.graph import batch, halve
from mlpot.md.replicas import Replicas
from mlpot.models.checkpoint import load_potential
from mlpot.models.compiled import PART_EDGES, cache_path, can_compile
from mlpot.neighbors import build_graph
from tests.helpers import ethanol, float32_limit, methanol_with_water, save_random_model

pytestmark = pytest.mark.skipif(not can_compile(), reason="no C++ compiler on this machine")
TOLERANCE = {"float32": 2e-5, "float64": 1e-10}  # eV/Å, as for every other engine


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return save_random_model(folder / "random.safetensors", layers=2, heads=16)


@pytest.fixture(scope="module", params=["float32", "float64"])
def exported(request: pytest.FixtureRequest, weights: Path) -> tuple[Path, str]:
    path = weights.with_name(f"{request.param}.pt2")
    info = export(weights, path, dtype=request.param, format="aoti")
    assert info.engine == "compiled" and info.cpu
    return path, request.param


@pytest.fixture(scope="module")
def package(weights: Path) -> Path:
    """The variant "one" in float32, compiled once for all that need no compiler of their own."""
    path = weights.with_name("one.pt2")
    compile_variant(load_potential(weights)[0], "one", path)
    return path


@pytest.fixture
def built(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is compiled into a cache that is empty at first, where "one" takes a second."""
    monkeypatch.setenv("MLPOT_CACHE", str(tmp_path))
    found: list[str] = []

    def build(potential: object, variant: str, path: Path) -> None:
        found.append(variant)
        time.sleep(1.0)
        path.write_bytes(package.read_bytes())

    monkeypatch.setattr("mlpot.deploy.compiled.compile_variant", build)
    return found


@pytest.mark.parametrize("threads", [1, 2])
def test_an_exported_package_gives_eagers_numbers(
    weights: Path, exported: tuple[Path, str], threads: int
) -> None:
    path, dtype = exported
    torch.set_num_threads(threads)
    eager, model = load(weights, engine="eager", dtype=dtype), load(path)
    assert model.engine == "compiled" and str(model.dtype).endswith(dtype)
    crowd = ethanol()
    crowd.cell = [6.0, 6.0, 5.5]
    crowd *= (3, 3, 2)  # thousands of edges: where several cores share one structure
    for atoms in (ethanol(), methanol_with_water(), crowd):
        for cell in (None, np.diag([18.0, 18.0, 16.5])):
            want = eager(atoms.numbers, atoms.positions, cell)
            got = model(atoms.numbers, atoms.positions, cell)
            assert np.abs(want.forces).max() > 0.05
            limit = TOLERANCE[dtype]
            if dtype == "float32":
                limit = float32_limit(weights, atoms, cell, limit)
            np.testing.assert_allclose(got.forces, want.forces, atol=limit, rtol=0)
            assert got.energy == pytest.approx(want.energy, abs=TOLERANCE[dtype] * len(atoms))
            if cell is not None:
                np.testing.assert_allclose(got.stress, want.stress, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_replicas_of_different_molecules(
    weights: Path, exported: tuple[Path, str], threads: int
) -> None:
    """A batch is worked off in parts, of different sizes, whatever is in them."""
    path, dtype = exported
    molecules = [ethanol(), methanol_with_water(), ethanol()[:3], ethanol()[:1]] * 8
    ends = []
    for model in (load(weights, engine="eager", dtype=dtype), load(path)):
        torch.set_num_threads(threads)
        numbers, positions = zip(*((a.numbers, a.positions) for a in molecules), strict=True)
        ensemble = Replicas(model, numbers, positions, temperatures=300.0, seeds=5)
        assert ensemble.graph().edge_index.shape[1] > 2 * PART_EDGES
        ensemble.step(10)
        ends.append(np.concatenate(ensemble.positions))
    assert ends[0] == pytest.approx(ends[1], abs=100 * TOLERANCE[dtype])


def test_a_package_needs_no_compiler_and_no_weights(exported: tuple[Path, str]) -> None:
    path, _ = exported
    code = (
        "import sys; from ase.build import molecule; from mlpot import MLPotCalculator\n"
        f"a = molecule('H2O'); a.calc = MLPotCalculator({str(path)!r}, device='cpu')\n"
        "print(a.get_potential_energy())"
    )
    bare = {k: v for k, v in os.environ.items() if k not in ("CXX", "CC")} | {"PATH": "/nowhere"}
    run = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < -1000


def test_torch_reads_the_package_as_well(exported: tuple[Path, str]) -> None:
    path, dtype = exported
    theirs = load_package(str(path), model_name="one")
    model = load(path)
    graph = model.bind(ethanol().numbers).graph(ethanol().positions)
    with torch.no_grad():
        energy = theirs(*halve(graph))[0]
    torch.testing.assert_close(energy, model.predict(graph).energy)
    assert str(graph.positions.dtype).endswith(dtype)


def test_the_first_use_compiles_and_the_next_finds_it(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLPOT_CACHE", str(tmp_path))
    assert not starts_compiled(weights) and load(weights, device="cpu").engine == "eager"
    atoms = ethanol()
    want = load(weights, engine="eager")(atoms.numbers, atoms.positions)
    got = load(weights, engine="compiled", device="cpu")(atoms.numbers, atoms.positions)
    np.testing.assert_allclose(got.forces, want.forces, atol=2e-5)
    assert starts_compiled(weights) and not starts_compiled(weights, "float64")
    monkeypatch.setattr("mlpot.deploy.compiled.can_compile", lambda: False)
    again = MLPotCalculator(weights, device="cpu")  # auto takes what is there
    assert again.model.engine == "compiled"
    assert is_cached({"weights": again.model.info.sha256}, torch.float32)
    atoms.calc = again
    np.testing.assert_allclose(atoms.get_forces(), want.forces, atol=2e-5)


def test_a_damaged_package_is_no_reason_to_compile_unasked(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLPOT_CACHE", str(tmp_path))
    key = {"weights": load_potential(weights)[1].sha256, "dtype": "torch.float32"}
    damaged = cache_path({**key, "variant": "one"})
    damaged.write_bytes(b"half a package")
    monkeypatch.setattr("mlpot.deploy.compiled.can_compile", lambda: False)
    assert load(weights, device="cpu").engine == "eager"
    assert not damaged.exists()


def test_a_model_travels_as_what_it_was_loaded_from(weights: Path, built: list[str]) -> None:
    atoms = ethanol()
    dtypes = {"eager": "float64", "torchscript": "float64", "compiled": "float32"}
    for engine, dtype in dtypes.items():
        model = load(weights, engine=engine, dtype=dtype, device="cpu")
        again = pickle.loads(pickle.dumps(MLPotCalculator(model))).model
        assert (again.engine, again.dtype, again.source) == (engine, model.dtype, weights)
        want, got = (m(atoms.numbers, atoms.positions).forces for m in (model, again))
        np.testing.assert_allclose(got, want, atol=1e-12)
    assert built == ["one"]


def test_atoms_and_not_neighbours_choose_the_package() -> None:
    """A molecule that folds in the middle of a run must not start the compiler."""
    asked: list[str] = []

    def load_variant(variant: str) -> Any:
        asked.append(variant)
        raise CompileError(variant)

    rng = np.random.default_rng(0)
    for count, spacing in ((SHARED_ATOMS - 6, 1.2), (SHARED_ATOMS + 6, 8.0)):
        positions = spacing * np.indices((5, 4, 4)).reshape(3, -1).T[:count]
        positions += rng.normal(scale=0.01, size=positions.shape)
        graph = build_graph(np.ones(count, dtype=int), positions, 4.0)
        with pytest.raises(CompileError):
            CompiledPotential(load_variant, threads=2)(graph)
    assert asked == ["one", "many"]


def test_auto_never_compiles(weights: Path, built: list[str]) -> None:
    """With one of the two packages in the cache, that one does everything."""
    small, large = ethanol(), ethanol()
    large.cell = [6.0, 6.0, 5.5]
    large *= (3, 3, 2)
    torch.set_num_threads(2)
    load(weights, engine="compiled", device="cpu")(small.numbers, small.positions)
    assert built == ["one"]
    model, eager = load(weights, device="cpu"), load(weights, engine="eager")
    assert model.engine == "compiled"
    for atoms in (small, large):
        want = eager(atoms.numbers, atoms.positions)
        got = model(atoms.numbers, atoms.positions)
        np.testing.assert_allclose(got.forces, want.forces, atol=5e-5)
    assert built == ["one"]


def test_two_threads_may_come_first(weights: Path, built: list[str]) -> None:
    model, atoms = load(weights, engine="compiled", device="cpu"), ethanol()
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: model(atoms.numbers, atoms.positions).energy, range(2)))
    assert len(built) == 1 and both[0] == both[1]


@pytest.mark.parametrize("field", ["numbers", "edge_index", "shifts", "batch"])
def test_graphs_that_do_not_fit_are_errors_not_crashes(
    exported: tuple[Path, str], field: str
) -> None:
    path, _ = exported
    model = load(path)
    graph = model.bind(ethanol().numbers).graph(ethanol().positions)
    value = getattr(graph, field)
    with pytest.raises(InputError, match=r"Graph\.\w+ must"):
        model.predict(graph._replace(**{field: value[..., :-1]}))
    if not value.is_floating_point():
        with pytest.raises(InputError, match=r"Graph\.\w+ must"):
            model.predict(graph._replace(**{field: value.int()}))
    if field == "numbers":
        with pytest.raises(RuntimeError, match="out of range"):
            model.predict(graph._replace(numbers=value + 117))
    if field == "edge_index":
        with pytest.raises(RuntimeError, match="out of range"):
            model.predict(graph._replace(edge_index=value + 10**6))
        with pytest.raises(InputError, match="must come with its reverse"):
            model.predict(graph._replace(edge_index=value[:, 1:], shifts=graph.shifts[1:]))


def test_a_batch_whose_edges_are_mixed(exported: tuple[Path, str], weights: Path) -> None:
    path, dtype = exported
    model, eager = load(path), load(weights, engine="eager", dtype=dtype)
    one = model.bind(ethanol().numbers).graph(ethanol().positions)
    many = batch([one] * 40)
    order = torch.randperm(many.edge_index.shape[1])
    mixed = many._replace(edge_index=many.edge_index[:, order], shifts=many.shifts[order])
    want = eager.predict(many).forces
    torch.testing.assert_close(model.predict(mixed).forces, want, atol=5e-5, rtol=0)


def test_a_broken_compiler_is_no_riddle(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    code = (
        "from mlpot.models.compiled import can_compile; assert not can_compile()\n"
        "from mlpot.deploy.load import load; from ase.build import molecule; a = molecule('H2O')\n"
        f"load({str(weights)!r}, engine='compiled', device='cpu')(a.numbers, a.positions)"
    )
    bare = {k: v for k, v in os.environ.items() if k not in ("CXX", "CC")}
    bare |= {"PATH": str(tmp_path), "MLPOT_CACHE": str(tmp_path / "cache")}
    run = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True)
    assert "CompileError: the compiled engine needs a C++ compiler" in run.stderr, run.stderr


def test_without_a_compiler_the_error_names_the_remedy(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLPOT_CACHE", str(tmp_path))
    monkeypatch.setattr("mlpot.deploy.compiled.can_compile", lambda: False)
    model = load(weights, engine="compiled", device="cpu")
    with pytest.raises(CompileError, match=r"C\+\+ compiler.*mlpot export --format aoti"):
        model(ethanol().numbers, ethanol().positions)


def test_a_package_for_another_processor_is_refused(
    exported: tuple[Path, str], tmp_path: Path
) -> None:
    other = tmp_path / "other.pt2"
    with zipfile.ZipFile(exported[0]) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith(ENTRY):
                data = data.replace(b'"cpu":["', b'"cpu":["quantum_simd","')
            target.writestr(name, data)
    with pytest.raises(ModelFileError, match="another kind of processor.*quantum_simd"):
        load(other)


def test_damaged_packages_and_wrong_engines_are_refused(
    exported: tuple[Path, str], tmp_path: Path
) -> None:
    path, _ = exported
    cut_off = tmp_path / "cut.pt2"
    cut_off.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelFileError, match=r"cut\.pt2 is truncated"):
        load(cut_off)
    with pytest.raises(InputError, match="holds the compiled engine"):
        load(path, engine="eager")
    with pytest.raises(InputError, match="runs in Python only"):
        standalone(load(path), ethanol().numbers, periodic=False)
    with pytest.raises(InputError, match=r"must be named \*\.pt2"):
        export("pretrained-visnet", tmp_path / "x.pt", format="aoti")
    with pytest.raises(InputError, match="exported already"):
        export(path, tmp_path / "x.pt2", format="aoti")
