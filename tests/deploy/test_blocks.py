"""Large structures in the compiled engine: when they go in blocks, and what if they cannot."""

from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from mlpot.deploy import compiled
from mlpot.deploy.compiled import compile_variant, is_cached, open_blocks
from mlpot.deploy.load import compile_ahead, could_compile, load
from mlpot.errors import CompileError, DamagedFileError
from mlpot.graph import batch
from mlpot.md.replicas import Replicas
from mlpot.models import blocks
from mlpot.models.checkpoint import load_potential
from mlpot.models.compiled import cache_path, can_compile, workers
from mlpot.neighbors import build_graph
from tests.helpers import ethanol, float32_limit, save_random_model

pytestmark = [
    pytest.mark.skipif(not can_compile(), reason="no C++ compiler on this machine"),
    pytest.mark.slow,
]
CELL = np.diag([18.0, 12.0, 11.0])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, so that there is one between the first and the last; few channels."""
    folder = tmp_path_factory.mktemp("model")
    return save_random_model(folder / "random.safetensors", layers=3, channels=8)


@pytest.fixture(scope="module")
def packages(weights: Path) -> dict[str, Path]:
    """``one`` and ``blocks``, compiled once for all tests here."""
    potential = load_potential(weights)[0]
    made = {variant: weights.with_name(f"{variant}.pt2") for variant in ("one", "blocks")}
    for variant, path in made.items():
        compile_variant(potential, variant, path)
    return made


@pytest.fixture
def asked(packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is compiled, in a cache that is empty at first; `crowd` is large."""
    monkeypatch.setenv("MLPOT_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "BLOCKED_ATOMS", 100)
    monkeypatch.setattr(blocks, "BLOCK_EDGES", 600)
    found: list[str] = []

    def compile_instead(_: Any, variant: str, out: Path) -> None:
        found.append(variant)
        out.write_bytes(packages["one" if variant == "many" else variant].read_bytes())

    monkeypatch.setattr(compiled, "compile_variant", compile_instead)
    torch.set_num_threads(1)
    return found


def crowd() -> Atoms:
    """108 atoms with thousands of edges."""
    atoms = ethanol()
    atoms.cell = CELL / [3, 2, 2]
    return atoms * (3, 2, 2)


def put(packages: dict[str, Path], weights: Path, variant: str) -> Path:
    """Into the cache, as if compiled before."""
    key = {"weights": load_potential(weights)[1].sha256, "dtype": "torch.float32"}
    path = cache_path({**key, "variant": variant})
    path.write_bytes(packages[variant].read_bytes())
    return path


@pytest.mark.parametrize("threads", [1, 2])
def test_many_atoms_go_in_blocks(
    weights: Path, asked: list[str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[int] = []

    def predict(run: Any, graph: Any, each: Any = map) -> Any:
        if len(graph.numbers) == 108:  # not those of the self-check
            graphs.append(108)
        return blocks.predict(run, graph, each)

    monkeypatch.setattr(compiled, "predict", predict)
    torch.set_num_threads(threads)
    model, eager = load(weights, "compiled", device="cpu"), load(weights, "eager")
    for cell in (None, CELL):
        atoms = crowd()
        got = model(atoms.numbers, atoms.positions, cell)
        want = eager(atoms.numbers, atoms.positions, cell)
        assert np.abs(want.forces).max() > 0.05
        limit = float32_limit(weights, atoms, cell)
        np.testing.assert_allclose(got.forces, want.forces, atol=limit)
        assert got.energy == pytest.approx(want.energy, abs=2e-5 * len(atoms))
        if cell is not None:
            np.testing.assert_allclose(got.stress, want.stress, atol=limit)
    assert graphs == [108, 108] and asked == ["blocks"]
    small = ethanol()
    model(small.numbers, small.positions)
    assert len(graphs) == 2 and asked == ["blocks", "one"]


def test_blocks_give_the_same_numbers_every_time(
    packages: dict[str, Path], asked: list[str]
) -> None:
    """To the last bit, whichever thread is first."""
    run, atoms = open_blocks(packages["blocks"]), crowd()
    names = {f"{way}{i}" for way in ("forward", "backward") for i in range(4)}
    assert set(run) == names - {"forward3"}
    graph = build_graph(atoms.numbers, atoms.positions, 5.0, CELL, (True,) * 3)
    with workers(3) as pool:
        first = blocks.predict(run, graph, pool.map)
        for each in (map, pool.map, pool.map):
            again = blocks.predict(run, graph, each)
            assert all(torch.equal(a, b) for a, b in zip(first[:4], again[:4], strict=True))


def test_torch_keeps_its_threads(
    weights: Path, packages: dict[str, Path], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a thread that begins while blocks are worked off; and threads with other numbers may
    use the same model at the same time."""
    seen: list[int] = []

    def predict(*given: Any) -> Any:
        begun = Thread(target=lambda: seen.append(torch.get_num_threads()))
        begun.start()
        begun.join()
        return blocks.predict(*given)

    torch.set_num_threads(2)
    put(packages, weights, "blocks")
    model, atoms = load(weights, "compiled", device="cpu"), crowd()
    graph = model.bind(atoms.numbers).graph(atoms.positions)
    want = model.predict(graph).forces
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "predict", predict)
        model.predict(graph)
    assert seen == [2] and torch.get_num_threads() == 2
    found: dict[int, Any] = {}

    def use(threads: int) -> None:
        torch.set_num_threads(threads)
        torch.get_num_threads()  # makes it final for this thread
        off = [(model.predict(graph).forces - want).abs().max() for _ in range(4)]
        found[threads] = float(max(off)), torch.get_num_threads()

    users = [Thread(target=use, args=(n,)) for n in (2, 3)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert {n: threads for n, (_, threads) in found.items()} == {2: 2, 3: 3}
    assert max(off for off, _ in found.values()) == 0.0


def test_wrong_machine_code_is_not_kept(
    weights: Path, packages: dict[str, Path], asked: list[str], tmp_path: Path
) -> None:
    """The package of another model stands for a compiler that is wrong."""
    other = save_random_model(tmp_path / "other.safetensors", seed=7, layers=3, channels=8)
    model, atoms = load(other, "compiled", device="cpu"), ethanol()
    with pytest.raises(CompileError, match="differs from eager"):
        model(atoms.numbers, atoms.positions)
    assert asked == ["one"] and not is_cached({"weights": model.info.sha256}, torch.float32)


def test_nothing_is_compiled_in_the_middle_of_a_run(weights: Path, asked: list[str]) -> None:
    """Of replicas all but one may be lost, and then that one is a structure of its own."""
    torch.set_num_threads(2)
    model, atoms = load(weights, "compiled", device="cpu"), crowd()[:80]
    ensemble = Replicas(model, [atoms.numbers] * 2, [atoms.positions] * 2, temperatures=0.0)
    ensemble.step()
    ensemble.remove([0])
    ensemble.step()
    assert asked == ["one"]


def test_blocks_need_no_edges(weights: Path, packages: dict[str, Path]) -> None:
    potential, run = load_potential(weights)[0], open_blocks(packages["blocks"])
    for positions in ([[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 50.0]]):
        graph = build_graph([8] * len(positions), positions, 5.0)
        got, want = blocks.predict(run, graph), potential(graph)
        torch.testing.assert_close(got.energy, want.energy)
        assert not got.forces.any() and not got.virial.any()


def test_large_structures_of_a_batch_go_in_blocks(weights: Path, asked: list[str]) -> None:
    model, eager = load(weights, "compiled", device="cpu"), load(weights, "eager")
    atoms = crowd()
    graphs = [
        model.bind(atoms.numbers, periodic).graph(atoms.positions, CELL if periodic else None)
        for periodic in (True, False)
    ]
    got, want = model.predict(batch(graphs)), eager.predict(batch(graphs))
    limit = max(float32_limit(weights, atoms, cell) for cell in (CELL, None))
    torch.testing.assert_close(got.forces, want.forces, atol=limit, rtol=0)
    torch.testing.assert_close(got.virial, want.virial, atol=1e-3, rtol=1e-5)
    assert asked == ["blocks"]


def test_blocks_alone_run_everything(
    weights: Path, packages: dict[str, Path], asked: list[str]
) -> None:
    """Of `auto`, which compiles nothing."""
    put(packages, weights, "blocks")
    model, eager = load(weights, device="cpu"), load(weights, "eager")
    assert model.engine == "compiled"
    small = model.bind(ethanol().numbers).graph(ethanol().positions)
    for graph in (small, batch([small, small, small])):
        got, want = model.predict(graph), eager.predict(graph)
        limit = float32_limit(weights, ethanol())
        torch.testing.assert_close(got.forces, want.forces, atol=limit, rtol=0)
        torch.testing.assert_close(got.energy, want.energy, atol=1e-4, rtol=0)
    assert not asked


@pytest.mark.parametrize("reason", ["no compiler", "a broken one"])
def test_where_blocks_cannot_be_made_the_others_do_it(
    weights: Path,
    packages: dict[str, Path],
    asked: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise CompileError("the model could not be compiled")

    put(packages, weights, "one")
    monkeypatch.setattr(compiled, "compile_variant", broken)
    if reason == "no compiler":
        monkeypatch.setattr(compiled, "can_compile", lambda: False)
    model, eager, atoms = load(weights, "compiled", device="cpu"), load(weights, "eager"), crowd()
    with pytest.warns(UserWarning, match="in one piece, in ten times the memory"):
        got = model(atoms.numbers, atoms.positions, CELL)
    want = eager(atoms.numbers, atoms.positions, CELL)
    limit = float32_limit(weights, atoms, CELL)
    np.testing.assert_allclose(got.forces, want.forces, atol=limit)
    model(atoms.numbers, atoms.positions, CELL)  # and is silent from then on


def test_a_damaged_package_of_blocks_is_made_again(
    weights: Path, packages: dict[str, Path], asked: list[str]
) -> None:
    damaged, atoms = put(packages, weights, "blocks"), crowd()
    damaged.write_bytes(damaged.read_bytes()[:1000])
    load(weights, "compiled", device="cpu")(atoms.numbers, atoms.positions, CELL)
    assert asked == ["blocks"]
    assert damaged.read_bytes() == packages["blocks"].read_bytes()


def test_a_damaged_package_of_blocks_is_no_reason_to_compile_unasked(
    weights: Path, packages: dict[str, Path], asked: list[str]
) -> None:
    damaged, atoms = put(packages, weights, "blocks"), crowd()
    damaged.write_bytes(b"half a package")
    put(packages, weights, "one")
    model = load(weights, device="cpu")
    assert model.engine == "compiled"
    model(atoms.numbers, atoms.positions, CELL)
    assert not asked and not damaged.exists()


@pytest.mark.parametrize("content", [b"half a package", b"PK\x05\x06" + bytes(18)])
def test_a_damaged_package_is_named(content: bytes, tmp_path: Path) -> None:
    """No zip file, and one with nothing in it."""
    path = tmp_path / "blocks.pt2"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"blocks\.pt2"):
        open_blocks(path)


def test_a_long_run_of_a_large_structure_prepares_blocks(
    weights: Path, packages: dict[str, Path], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"weights": load_potential(weights)[1].sha256}
    put(packages, weights, "one")
    atoms, told = crowd(), []
    assert could_compile(weights, atoms=len(atoms)) == "blocks"
    assert not could_compile(weights, atoms=9)
    assert compile_ahead(weights, None, len(atoms), told.append)
    assert asked == ["blocks"] and is_cached(key, torch.float32, ["blocks"])
    assert len(told) == 1 and "large structures" in told[0] and "minutes" in told[0]
    assert not compile_ahead(weights, None, len(atoms), told.append)
    model = load(weights, "compiled", device="cpu")
    model(atoms.numbers, atoms.positions)  # nothing is left to compile
    assert asked == ["blocks"] and len(told) == 1
