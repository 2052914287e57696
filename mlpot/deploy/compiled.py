"""The compiled engine: energy, forces and virial as machine code, without autograd.

Three packages of one model. ``one`` runs on one core; a batch is cut into parts that fit its
cache, which threads share. ``many`` shares the work inside one large structure. ``blocks`` works
off a larger one in parts (`mlpot.models.blocks`), in a tenth of the memory.
"""

import re
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlpot.deploy.metadata import ENTRY, ExportInfo, parse_export_info
from mlpot.deploy.selfcheck import deviation
from mlpot.errors import CompileError, DamagedFileError, ModelFileError
from mlpot.graph import Cut, Graph, check, check_sizes, cut, halve, take
from mlpot.models.blocks import predict
from mlpot.models.checkpoint import write_atomically
from mlpot.models.compiled import (
    ANY_THREADS,
    ONE_THREAD,
    PART_EDGES,
    Runner,
    cache_path,
    cached,
    can_compile,
    compile_package,
    cpu_features,
    keep_package,
    open_runner,
    workers,
)
from mlpot.models.memory import MANY_EDGES, keep_large_buffers, share_buffers
from mlpot.models.potential import Potential, Prediction
from mlpot.models.stages import has_stages, trace_stages
from mlpot.models.tracing import example_graph, find_segments, sum_by_segments, trace_potential

VARIANTS = ("one", "many")  # what an exported file holds
BLOCKS = "blocks"

#: atoms from which a structure is worth more than one core: below, waiting costs more. Atoms and
#: not edges, whose number may cross a line in the middle of a simulation
SHARED_ATOMS = 70

#: atoms from which a structure is worked off in blocks: a fifth slower than the others on one core,
#: 7 % on two, but 42 kB an atom (of 6,000); what those hold, 480 kB, is a gigabyte from here on
BLOCKED_ATOMS = 2000

#: variant -> its package ready to run (of ``blocks``: all its graphs, by name); None if it is not
#: there and may not be made
Load = Callable[[str], Any]


class CompiledPotential:
    """Graph -> Prediction, on a CPU; what an engine runs.

    Packages are opened, and made, by `prepare`, or by the first call; later calls take the best of
    those that are open, so that nothing is compiled in the middle of a run.

    Args:
        load: ``load(variant) -> Runner``.
        threads: cores to use; None is torch's number of threads at every call.
    """

    def __init__(self, load: Load, threads: int | None = None):
        self._load = load
        self._fixed = threads
        self._runners: dict[str, Any] = {}
        self._pools: dict[int, ThreadPoolExecutor] = {}  # never shut down: others may be at work
        self._making = threading.Lock()

    def __deepcopy__(self, memo: Any) -> "CompiledPotential":
        return CompiledPotential(self._load, self._fixed)

    @property
    def threads(self) -> int:
        return self._fixed or torch.get_num_threads()

    def prepare(self, atoms: int, structures: int = 1) -> None:
        """Open the package that suits structures of up to so many atoms, of which a call has so
        many; make it if it is not there yet."""
        for variant in best_first(atoms, structures, self.threads):
            if self._runner(variant) is not None:
                return

    def __call__(self, graph: Graph) -> Prediction:
        check_sizes(graph)  # machine code takes them for granted; values it checks itself
        edges, structures = graph.edge_index.shape[1], graph.cell.shape[0]
        if structures > 1 and edges > PART_EDGES // 2:
            # a part for every thread, if it then has work enough
            parts = cut(graph, PART_EDGES, min(self.threads, max(1, 2 * edges // PART_EDGES)))
            return self._in_parts(graph, parts)
        return self._whole(graph, self.threads)

    def opens(self) -> bool:
        """Is there a package that can be run?"""
        with suppress(ModelFileError):
            return any(self._runner(variant) is not None for variant in (*VARIANTS, BLOCKS))
        return False

    def _whole(self, graph: Graph, threads: int, pinned: bool = False) -> Prediction:
        """``pinned``: is this a thread that torch shares nothing out from?"""
        wanted = best_first(_largest(graph), 1, threads)
        for variant in [v for v in wanted if self._runners.get(v) is not None] or wanted:
            runner = self._runner(variant)
            if runner is None:  # not compiled yet, and not asked for: the next can do it too
                continue
            if variant == BLOCKS:
                return self._in_blocks(runner, check(graph), threads, pinned)
            if graph.edge_index.shape[1] >= MANY_EDGES:
                keep_large_buffers()
            return Only(variant, runner)(graph)
        raise CompileError(
            "the compiled model has gone from the cache since it was chosen; start again, or ask "
            "for engine='compiled'"
        )

    def _in_blocks(self, run: Any, graph: Graph, threads: int, pinned: bool) -> Prediction:
        each = self._workers(threads).map if threads > 1 else map
        if pinned:
            return predict(run, graph, each)
        return self._workers(1).submit(predict, run, graph, each).result()

    def _in_parts(self, graph: Graph, parts: list[Cut]) -> Prediction:
        if graph.edge_index.shape[1] >= MANY_EDGES:
            keep_large_buffers()
        pool = self._workers(self.threads) if self.threads > 1 and len(parts) > 1 else None

        def run(part: Cut) -> Prediction:
            return self._whole(take(graph, part), threads=1, pinned=pool is not None)

        found = [run(part) for part in parts] if pool is None else list(pool.map(run, parts))
        columns = zip(*(p[:4] for p in found), strict=True)  # all but features
        energy, forces, virial, interaction = (torch.cat(column) for column in columns)
        return Prediction(energy, forces, virial, interaction)

    def _workers(self, threads: int) -> ThreadPoolExecutor:
        with self._making:
            if threads not in self._pools:
                self._pools[threads] = workers(threads)
            return self._pools[threads]

    def _runner(self, variant: str) -> Any:
        if variant not in self._runners:
            self._runners[variant] = self._load(variant)
        return self._runners[variant]


def _largest(graph: Graph) -> int:
    """Atoms of a structure, or of the largest of several."""
    atoms = graph.numbers.shape[0]
    if graph.cell.shape[0] == 1 or atoms < BLOCKED_ATOMS:
        return atoms
    return int(torch.bincount(graph.batch).max())


def best_first(atoms: int, structures: int, threads: int) -> tuple[str, ...]:
    """Variants in the order in which they are wanted for so many atoms a structure."""
    shared = structures == 1 and threads > 1 and atoms >= SHARED_ATOMS
    whole = ("many", "one") if shared else ("one", "many")
    return (BLOCKS, *whole) if atoms >= BLOCKED_ATOMS else (*whole, BLOCKS)


class Only:
    """``one`` or ``many`` for every graph: what the self-check of an export runs."""

    def __init__(self, variant: str, runner: Runner):
        self._variant, self._runner = variant, runner

    def __call__(self, graph: Graph) -> Prediction:
        half = halve(graph)
        inputs = [field.contiguous() for field in half]
        if self._variant == "many":
            inputs += find_segments(half)
        return _prediction(self._runner(inputs))


def _prediction(outputs: list[Tensor]) -> Prediction:
    energy, interaction, forces, virial = outputs[:4]
    return Prediction(energy, forces, virial, interaction)


def compile_cached(
    potential: Potential, key: dict[str, Any], may_compile: bool = True
) -> CompiledPotential:
    """The compiled engine of a potential. A package is made when it is first needed (about a
    minute, two for ``blocks``), kept in the cache, and found there the next time. Where ``blocks``
    cannot be made, a warning says so, and the others do its work.

    Args:
        key: what tells this potential from others: the hash of its weights.
        may_compile: False takes what is in the cache.
    """
    key = {**key, "dtype": str(potential.scale.dtype)}

    def build(variant: str, path: Path) -> None:
        if not may_compile:
            raise _NotThereError
        if not can_compile():
            raise CompileError(
                "the compiled engine needs a C++ compiler (g++) the first time. Install one, "
                "or export on another machine with `mlpot export --format aoti`, or take "
                "another engine"
            )
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / f"{variant}.pt2"
            compile_variant(potential, variant, made)
            _check_numbers(made, variant, potential)
            keep_package(made, path)

    def load(variant: str) -> Any:
        told, blocks = {**key, "variant": variant}, variant == BLOCKS
        path = cache_path(told)
        if blocks and (not has_stages(potential) or path in _FAILED):
            return None
        if not may_compile and not path.is_file():
            return None
        read: Callable[[Path], Any] = open_blocks if blocks else open_runner
        try:
            return cached(told, partial(build, variant), read)
        except _NotThereError:
            return None
        except CompileError as error:
            if not blocks:
                raise
            _FAILED.add(path)
            warnings.warn(f"{error}. Goes on in one piece, in ten times the memory", stacklevel=2)
            return None

    return CompiledPotential(load)


#: packages of ``blocks`` that could not be made: minutes that are not spent again
_FAILED: set[Path] = set()


def _check_numbers(package: Path, variant: str, potential: Potential) -> None:
    """Before a package is kept. Raises CompileError: it gives other numbers than eager."""
    run: Any = open_blocks(package) if variant == BLOCKS else open_runner(package)
    candidate = partial(predict, run) if variant == BLOCKS else Only(variant, run)
    dtype = potential.scale.dtype
    found = deviation(candidate, potential, potential.elements, dtype)
    if not found.excess <= 1:  # NaN fails too
        raise CompileError(
            f"the compiled model differs from eager by {found.energy:.2e} eV per atom and "
            f"{found.force:.2e} eV/Å; it was thrown away. Take another engine, and please report "
            f"this with your torch version ({torch.__version__})"
        )


class _NotThereError(Exception):
    """Damaged in the cache, and not to be compiled."""


def is_cached(
    key: dict[str, Any], dtype: torch.dtype, variants: Sequence[str] = (*VARIANTS, BLOCKS)
) -> bool:
    """Is one of these variants there, so that `compile_cached` can start at once?"""
    told = {**key, "dtype": str(dtype)}
    return any(cache_path({**told, "variant": variant}).is_file() for variant in variants)


def best_variant(potential: Potential, atoms: int, structures: int) -> str:
    """The one that a long run is to have, with torch's number of threads."""
    wanted = best_first(atoms, structures, torch.get_num_threads())
    return next(v for v in wanted if v != BLOCKS or has_stages(potential))


def compile_variant(potential: Potential, variant: str, out: Path) -> None:
    """Trace and compile one variant into a package of its own."""
    if variant == BLOCKS:
        with tempfile.TemporaryDirectory() as folder:
            packages = {}
            for name, traced in trace_stages(potential).items():
                path = Path(folder) / f"{name}.pt2"
                packages[name] = compile_package(traced.graph, traced.example, 0, path)
            _join(packages, out)
        return
    module, example = trace_potential(potential), example_graph(potential)
    if variant == "one":
        compile_package(module, example, 0, out)
    else:
        module = sum_by_segments(module)
        left = any("index_add" in str(node.target) for node in module.graph.nodes)
        inputs = [*example, *find_segments(example)]
        compile_package(module, inputs, 0, out, ONE_THREAD if left else ANY_THREADS)


# --- exported files --------------------------------------------------------------------------


def write_package(packages: dict[str, Path], info: ExportInfo, out: Path) -> None:
    """One ``.pt2`` file of ``one`` and ``many`` and their description. torch opens it as well:
    ``torch._inductor.package.load_package(out, model_name="one")``."""
    _join(packages, out, {ENTRY: info.model_dump_json()})


def _join(packages: dict[str, Path], out: Path, texts: dict[str, str] | None = None) -> None:
    """Packages of one graph each as one file, with texts beside them."""
    with tempfile.TemporaryDirectory() as folder:
        joined = Path(folder) / "joined.pt2"
        with zipfile.ZipFile(joined, "w", zipfile.ZIP_STORED) as archive:
            for graph, path in packages.items():
                with zipfile.ZipFile(path) as package:
                    for name in package.namelist():
                        root, _, rest = name.partition("/")
                        inside = rest.replace("aotinductor/model/", f"aotinductor/{graph}/")
                        target = f"model/{inside}"
                        if target not in archive.namelist():
                            archive.writestr(target, package.read(name))
            for name, text in (texts or {}).items():
                archive.writestr(f"model/extra/{name}", text)
        write_atomically(out, joined.read_bytes())


def open_blocks(path: Path) -> dict[str, Runner]:
    """All graphs of a package of ``blocks``, by name.

    Raises:
        DamagedFileError, ModelFileError: as `open_runner`.
    """
    try:
        with zipfile.ZipFile(path) as package:
            names = package.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DamagedFileError(f"{path} is no compiled model ({error}); make it again") from error
    graphs = {found[1] for name in names if (found := re.search("/aotinductor/(.+?)/", name))}
    if not graphs:
        raise DamagedFileError(f"{path} is no compiled model; make it again")
    share_buffers()  # before there are threads that would want their own
    return {graph: open_runner(path, graph) for graph in sorted(graphs)}


def read_package(path: Path) -> tuple[CompiledPotential, ExportInfo]:
    """The compiled engine in an exported file, and its description.

    Raises:
        ModelFileError: truncated, no mlpot package, or made for another kind of processor.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(f"model/extra/{ENTRY}").decode()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelFileError(
            f"{path} is truncated, or no package that mlpot exported ({error}). Export it again "
            "with `mlpot export --format aoti`"
        ) from error
    info = parse_export_info(text, str(path))
    if info.torch.split(".")[:2] != torch.__version__.split(".")[:2]:
        raise ModelFileError(
            f"{path} was compiled with torch {info.torch}, this is {torch.__version__}. Export it "
            "again here"
        )
    missing = sorted(set(info.cpu) - set(cpu_features()))
    if missing:
        raise ModelFileError(
            f"{path} was compiled for another kind of processor; this one lacks "
            f"{', '.join(missing[:6])}. Export it again on this machine"
        )
    found = {variant: open_runner(path, variant) for variant in VARIANTS}
    return CompiledPotential(found.get), info
