"""Compiled graphs: AOTInductor packages, where they are kept, and how they are run.

A package (``.pt2``) is a zip file around one shared library. On a CPU it is run through the
library's own C functions, because they let other Python threads go on; torch's loader holds
the interpreter lock. Several threads, each with a part of a batch and one core, are how mlpot
uses more than one core: unlike threads inside an operation they never wait for each other.
"""

import ctypes
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor
from torch.fx import GraphModule

from mlpot import __version__
from mlpot.errors import ModelFileError
from mlpot.models.checkpoint import write_atomically
from mlpot.models.tracing import dynamic_sizes

#: edges that one call should have: what a layer holds then fits a core's second-level cache
PART_EDGES = 1500

#: what inductor is told
OPTIONS: dict[str, Any] = {
    "cpp.enable_floating_point_contract_flag": "fast",  # fused multiply-add
    "assert_indirect_indexing": False,  # indices are checked where a Graph is made
}
ONE_THREAD = {"cpp.threads": 1}  # additions by index need not be atomic then
ANY_THREADS = {"cpp.dynamic_threads": True}


def compile_package(
    module: GraphModule,
    inputs: Sequence[Tensor],
    fixed: int,
    out: Path,
    threads: dict[str, Any] = ONE_THREAD,
) -> Path:
    """Compile a traced graph into ``out``.

    Args:
        module: from `mlpot.models.tracing`.
        inputs: example inputs, the ones it was traced with.
        fixed: how many inputs in front never change their size.
        threads: `ONE_THREAD`, for graphs that add by index, or `ANY_THREADS`.
    """
    from torch._inductor import aoti_compile_and_package

    with torch.no_grad(), _quietly(), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(
            _Flat(module), tuple(inputs), dynamic_shapes=(dynamic_sizes(inputs, fixed),)
        )
        made = aoti_compile_and_package(
            program,
            package_path=str(Path(folder) / "model.pt2"),
            inductor_configs={**OPTIONS, **threads},
        )
        write_atomically(out, Path(made).read_bytes())
    return out


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warnings about GPUs that are not there and sizes that might be equal."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Flat(torch.nn.Module):
    """torch.export takes a module, and counts the arguments of its forward."""

    def __init__(self, module: GraphModule):
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def cached(key: dict[str, Any], build: Callable[[Path], Any]) -> Path:
    """The package that ``key`` describes; built if it is not in the cache.

    Code, torch and processor are part of the key, so nothing stale is ever run.
    """
    path = cache_path(key)
    if not path.is_file():
        build(path)
    return path


def cache_path(key: dict[str, Any]) -> Path:
    """Where the package of ``key`` is, or would be."""
    told = {
        **key,
        "options": OPTIONS,
        "code": _CODE,
        "torch": torch.__version__,
        "cpu": cpu_features(),
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{digest[:24]}.pt2"


def cache_folder() -> Path:
    """``MLPOT_CACHE``, or the user's cache folder."""
    return Path(os.environ.get("MLPOT_CACHE") or user_cache_path("mlpot"))


def can_compile() -> bool:
    """Is there a C++ compiler?"""
    return shutil.which(os.environ.get("CXX", "c++")) is not None or bool(shutil.which("g++"))


def cpu_features() -> list[str]:
    """Instruction sets of this processor; compiled code may use every one of them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        flags = next(line for line in text.splitlines() if line.startswith(("flags", "Features")))
        return sorted(set(flags.partition(":")[2].split()))
    except (OSError, StopIteration):
        return [platform.machine(), torch.backends.cpu.get_cpu_capability()]


def _code() -> str:
    """Hash of the code that a package is made from."""
    digest = hashlib.sha256(__version__.encode())
    here = Path(__file__).parent
    for path in (*sorted(here.glob("*.py")), here.parent / "graph.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


#: of the code that is loaded; the files may change while a process runs
_CODE = _code()


class Runner:
    """A package ready to run: tensors in, list of tensors out. Threads may share one.

    Args:
        path: a ``.pt2`` package made on this kind of processor.
        concurrent: how many threads may be inside at once; more of them wait.
        name: of the graph, in a package with several.

    Raises:
        ModelFileError: truncated, or no package.
    """

    def __init__(self, path: str | Path, concurrent: int = 1, name: str = "model"):
        self._folder = tempfile.TemporaryDirectory(prefix="mlpot-")
        self._library = _load_library(Path(path), name, self._folder.name)
        self._container = ctypes.c_void_p()
        self._check(
            self._library.AOTInductorModelContainerCreateWithDevice(
                ctypes.byref(self._container), ctypes.c_size_t(concurrent), b"cpu", None
            )
        )
        count = ctypes.c_size_t()
        self._library.AOTInductorModelContainerGetNumOutputs(self._container, ctypes.byref(count))
        self._outputs = count.value

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs must be contiguous, of the dtypes that the package was made with."""
        capsules = _C.unsafe_alloc_void_ptrs_from_tensors(list(inputs))
        handles = (ctypes.c_void_p * len(capsules))(*[_pointer(c, None) for c in capsules])
        results = (ctypes.c_void_p * self._outputs)()
        self._check(
            self._library.AOTInductorModelContainerRun(  # it frees the input handles
                self._container,
                handles,
                ctypes.c_size_t(len(capsules)),
                results,
                ctypes.c_size_t(self._outputs),
                None,
                None,
            )
        )
        return _C.alloc_tensors_by_stealing_from_void_ptrs(
            [_capsule(pointer, None, None) for pointer in results]
        )

    def __del__(self) -> None:
        if getattr(self, "_container", None):
            self._library.AOTInductorModelContainerDelete(self._container)

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError("a compiled model failed; torch printed the reason above")


_C: Any = torch._C._aoti
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _load_library(path: Path, graph: str, folder: str) -> ctypes.CDLL:
    try:
        with zipfile.ZipFile(path) as package:
            inside = f"/aotinductor/{graph}/"
            (name,) = (
                n for n in package.namelist() if inside in n and n.endswith((".so", ".dylib"))
            )
            return ctypes.CDLL(package.extract(name, folder))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFileError(
            f"{path} cannot be loaded as a compiled model ({error}): truncated, or made on "
            "another kind of machine. Compile it again here"
        ) from error
