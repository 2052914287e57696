"""Traced and compiled graphs: eager's numbers, whatever the sizes and however many threads."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mlpot.deploy.compiled import CompiledPotential, Only, compile_variant
from mlpot.deploy.selfcheck import check_graphs
from mlpot.errors import CompileError, DamagedFileError, InputError, ModelFileError
from mlpot.graph import Graph, batch, cut, halve, take, whole
from mlpot.models.compiled import (
    cache_path,
    cached,
    can_compile,
    compile_package,
    open_runner,
    workers,
)
from mlpot.models.potential import Potential
from mlpot.models.scripting import script
from mlpot.models.tracing import find_segments, sum_by_segments, trace_potential
from tests.helpers import random_potential

needs_compiler = pytest.mark.skipif(not can_compile(), reason="no C++ compiler on this machine")

CONFIGS: dict[str, dict[str, Any]] = {
    "as many heads as channels": {"heads": 16},
    "two heads": {"heads": 2},
    "lmax 2": {"heads": 16, "lmax": 2},
    "published": {"heads": 4, "smooth": False, "self_loops": True, "vector_norm": "max_min"},
}


def small(**config: Any) -> Potential:
    return random_potential(**{"layers": 3, "channels": 16, "radial": 8, "cutoff": 4.0, **config})


def graphs(potential: Potential) -> list[Graph]:
    return check_graphs(potential.elements, potential.cutoff, potential.scale.dtype)


def assert_same(got: Any, potential: Potential, graph: Graph) -> None:
    """Eager's numbers in float32. Forces and virials of crowded atoms are large, and round
    accordingly; energies are summed in float64 from per-atom energies of order 1 eV."""
    want = potential(graph)
    for name in ("energy", "interaction", "forces", "virial"):
        a, b = getattr(got, name), getattr(want, name)
        scale = float(b.abs().max().clamp(min=1)) if name in ("forces", "virial") else 1.0
        torch.testing.assert_close(
            a, b, atol=3e-5 * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_traced_graph_gives_eagers_numbers_at_every_size(name: str) -> None:
    potential = small(**CONFIGS[name]).double()
    traced = trace_potential(potential)
    for graph in graphs(potential):
        energy, interaction, forces, virial = traced(*halve(graph))[:4]
        want = potential(graph)
        torch.testing.assert_close(energy, want.energy, atol=1e-9, rtol=1e-12)
        torch.testing.assert_close(interaction, want.interaction, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(forces, want.forces, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(virial, want.virial, atol=1e-10, rtol=1e-10)


def test_scripted_graphs_give_eagers_numbers() -> None:
    for config in CONFIGS.values():
        potential = small(**config)
        scripted = script(potential)
        for graph in graphs(potential):
            for _ in range(3):  # torch.jit optimises after the first calls
                assert_same(scripted(graph), potential, graph)


def test_scripted_graphs_run_whole_kernels() -> None:
    """What tracing writes out is put together again: the gradient of silu, and linear layers."""
    kinds = [node.kind() for node in script(small(heads=16)).inlined_graph.nodes()]
    assert kinds.count("aten::silu_backward") == kinds.count("aten::silu") > 0
    assert kinds.count("aten::linear") > 0
    assert not {"aten::sigmoid", "aten::addmm"} & set(kinds)


def test_threads_for_parts_leave_torch_as_it_was() -> None:
    torch.set_num_threads(3)
    with workers(2) as pool:
        assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {1}
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 3
    assert torch.get_num_threads() == 3


def test_tracing_leaves_the_potential_trainable() -> None:
    potential = small(heads=16)
    trace_potential(potential)
    assert all(p.requires_grad for p in potential.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_sums_by_segments_do_not_depend_on_the_order_of_edges(name: str) -> None:
    potential = small(**CONFIGS[name]).double()
    module = sum_by_segments(trace_potential(potential))
    left = any("index_add" in str(n.target) for n in module.graph.nodes)
    assert left == (name == "published")  # where self-loops join the edges
    for graph in graphs(potential):
        shuffle = torch.randperm(
            graph.edge_index.shape[1], generator=torch.Generator().manual_seed(0)
        )
        mixed = graph._replace(
            edge_index=graph.edge_index[:, shuffle].contiguous(), shifts=graph.shifts[shuffle]
        )
        mixed = halve(mixed)
        forces = module(*mixed, *find_segments(mixed))[2]
        torch.testing.assert_close(forces, potential(graph).forces, atol=1e-10, rtol=1e-10)


@pytest.fixture(scope="module")
def potential() -> Potential:
    """Two layers: one whose edges go on, and the last."""
    return small(heads=16, layers=2).eval()


@pytest.fixture(scope="module")
def packages(potential: Potential, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    paths = {variant: folder / f"{variant}.pt2" for variant in ("one", "many")}
    for variant, path in paths.items():
        compile_variant(potential, variant, path)
    return paths


@needs_compiler
@pytest.mark.parametrize("variant", ["one", "many"])
def test_compiled_graphs_give_eagers_numbers(
    variant: str, potential: Potential, packages: dict[str, Path]
) -> None:
    run = Only(variant, open_runner(packages[variant]))
    for graph in graphs(potential):
        assert_same(run(graph), potential, graph)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_in_parts_is_the_batch(
    threads: int, potential: Potential, packages: dict[str, Path]
) -> None:
    many = batch(graphs(potential) * 3)
    assert len(cut(many, 600)) > 2
    run = CompiledPotential(lambda variant: open_runner(packages[variant]), threads)
    assert_same(run(many), potential, many)


@needs_compiler
def test_threads_share_a_runner(potential: Potential, packages: dict[str, Path]) -> None:
    run, all_graphs = Only("one", open_runner(packages["one"])), graphs(potential) * 5
    with ThreadPoolExecutor(4) as pool:
        for got, graph in zip(pool.map(run, all_graphs), all_graphs, strict=True):
            assert_same(got, potential, graph)


@needs_compiler
def test_a_truncated_package_is_refused(packages: dict[str, Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.pt2"
    damaged.write_bytes(packages["one"].read_bytes()[:5000])
    with pytest.raises(ModelFileError, match=r"damaged\.pt2.*truncated"):
        open_runner(damaged)


def test_the_cache_builds_once_and_tells_keys_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLPOT_CACHE", str(tmp_path))
    built: list[Path] = []

    def build(path: Path) -> None:
        built.append(path)
        path.write_bytes(b"package")

    def read(path: Path) -> bytes:
        if path.read_bytes() != b"package":
            raise DamagedFileError("damaged")
        return path.read_bytes()

    assert cached({"weights": "a"}, build, read) == cached({"weights": "a"}, build, read)
    assert len(built) == 1
    built[0].write_bytes(b"pack")  # cut off: made again, not a riddle for the user
    assert cached({"weights": "a"}, build, read) == b"package" and len(built) == 2
    assert cache_path({"weights": "b"}) != built[0] and built[0].parent == tmp_path

    def cannot(path: Path) -> bytes:
        raise ModelFileError("no execution in TMPDIR")

    with pytest.raises(ModelFileError, match="TMPDIR"):
        cached({"weights": "a"}, build, cannot)
    assert built[0].is_file() and len(built) == 2  # a sound package is not thrown away


def test_a_full_cache_need_not_be_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLPOT_CACHE", str(tmp_path))
    cached({"weights": "a"}, lambda path: path.write_bytes(b"package"), Path.read_bytes)
    monkeypatch.setattr("mlpot.models.compiled.cache_folder", lambda: pytest.fail("wants to write"))
    assert cached({"weights": "a"}, lambda path: None, Path.read_bytes) == b"package"


def test_no_room_for_a_package_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was compiled; so nothing is."""
    made = tmp_path / "file"
    made.write_bytes(b"a package")
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", lambda *_, **__: str(made))
    module = torch.fx.symbolic_trace(torch.nn.Identity())
    compile_package(module, [torch.ones(3)], 0, tmp_path / "one.pt2")
    assert (tmp_path / "one.pt2").read_bytes() == b"a package"
    with pytest.raises(CompileError, match="cannot be written.*MLPOT_CACHE"):
        compile_package(module, [torch.ones(3)], 0, made / "one.pt2")


def test_of_two_processes_one_builds(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from mlpot.models.compiled import cached

def build(path):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    time.sleep(1)
    path.write_bytes(b"package")

print("ready", flush=True)
input()
assert cached({"weights": "a"}, build, Path.read_bytes) == b"package"
"""
    log, environment = tmp_path / "log", {**os.environ, "MLPOT_CACHE": str(tmp_path)}
    start = partial(
        subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )
    both = [start([sys.executable, "-c", script, str(log)]) for _ in range(2)]
    pipes = [(process.stdin, process.stdout) for process in both]
    assert all(told and told.readline() == "ready\n" for _, told in pipes)
    for given, _ in pipes:
        assert given
        given.write("go\n")
        given.close()
    assert [process.wait(60) for process in both] == [0, 0]
    assert log.read_text().count("built") == 1


def test_half_the_edges_say_it_all() -> None:
    potential = small(heads=16).double()
    for graph in graphs(potential):
        again = whole(halve(graph))
        torch.testing.assert_close(potential(again).forces, potential(graph).forces)
        assert again.edge_index.shape == graph.edge_index.shape
    lone = graphs(potential)[3]
    lone = lone._replace(edge_index=lone.edge_index[:, :1], shifts=lone.shifts[:1])
    with pytest.raises(InputError, match="must come with its reverse"):
        halve(lone)


@pytest.mark.parametrize("edges", [1, 300, 10**6])
@pytest.mark.parametrize("least", [1, 3])
def test_parts_of_a_batch_are_its_structures(edges: int, least: int, potential: Potential) -> None:
    structures = graphs(potential)[:-1]
    parts = cut(batch(structures), edges, least)
    assert len(cut(batch(structures[3:4] * 6), edges, least)) >= least
    joined = batch([take(batch(structures), part) for part in parts])
    for got, want in zip(joined, batch(structures), strict=True):
        assert torch.equal(got, want)
