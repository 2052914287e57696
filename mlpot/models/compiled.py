"""Compiled graphs: AOTInductor packages, where they are kept, and how they are run.

A package (``.pt2``) is a zip file around one shared library. On a CPU it is run through the
library's own C functions, because they let other Python threads go on; torch's loader holds
the interpreter lock. Several threads, each with a part of a batch and one core, are how mlpot
uses more than one core: unlike threads inside an operation they never wait for each other.
"""

import atexit
import ctypes
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from torch import Tensor
from torch.fx import GraphModule

from mlpot import __version__
from mlpot.errors import CompileError, DamagedFileError, ModelFileError
from mlpot.models.checkpoint import write_atomically
from mlpot.models.memory import keep_buffers
from mlpot.models.tracing import dynamic_sizes

Got = TypeVar("Got")
_BUILDING = threading.RLock()

#: seconds to wait for another process that compiles the same
_PATIENCE = 900

#: names of instruction sets among a processor's flags
_INSTRUCTIONS = re.compile(
    r"(avx|sse|ssse|fma|f16c|bmi|amx|popcnt|abm|lzcnt|movbe|adx|v?aes|v?pclmul|sha|gfni|asimd|sve|fp)"
)

#: edges that one call should have: what a layer holds then fits a core's second-level cache
PART_EDGES = 600

#: what inductor is told
OPTIONS: dict[str, Any] = {
    "cpp.enable_floating_point_contract_flag": "fast",  # fused multiply-add
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

    Raises:
        CompileError: no working compiler, or no room for the package.
    """
    from torch._inductor import aoti_compile_and_package

    with torch.no_grad(), _quietly(), tempfile.TemporaryDirectory() as folder:
        try:
            program = torch.export.export(
                _Flat(module), tuple(inputs), dynamic_shapes=(dynamic_sizes(inputs, fixed),)
            )
            made = aoti_compile_and_package(
                program,
                package_path=str(Path(folder) / "model.pt2"),
                inductor_configs={**OPTIONS, **threads},
            )
        except Exception as error:  # whatever torch's compilers raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CompileError(
                f"the model could not be compiled ({reason}). A working C++ compiler with OpenMP "
                "(g++) is needed; or take another engine"
            ) from error
        keep_package(Path(made), out)
    return out


def keep_package(made: Path, out: Path) -> None:
    """Copy a finished package to where it is to be.

    Raises:
        CompileError: no room there.
    """
    try:
        write_atomically(out, made.read_bytes())
    except OSError as error:
        raise CompileError(
            f"the compiled model cannot be written to {out.parent} ({error.strerror}); make "
            "room there, let MLPOT_CACHE name another folder, or take another engine"
        ) from error


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


def cached(key: dict[str, Any], build: Callable[[Path], Any], read: Callable[[Path], Got]) -> Got:
    """What ``read`` makes of the package that ``key`` describes; built if it is not in the cache,
    or not in a state to be read.

    Code, torch and processor are part of the key, so nothing stale is ever run.

    Args:
        read: raises DamagedFileError (or RuntimeError) for what has to be built anew. Other errors
            would come again.
    """
    path = cache_path(key)

    def found() -> Got | None:
        if path.is_file():
            try:
                return read(path)
            except (DamagedFileError, RuntimeError):
                with suppress(OSError):  # of a shared cache
                    path.unlink()
        return None

    with _BUILDING:  # inductor is one for the whole process
        if (got := found()) is not None:
            return got
        with _alone(path):  # jobs of one array start together; one of them compiles
            if (got := found()) is None:
                build(path)
                got = read(path)
            return got


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of this file among processes; where a file system has none, go on without."""
    lock = FileLock(f"{path}.lock")
    with suppress(Timeout, OSError, NotImplementedError):
        lock.acquire(timeout=_PATIENCE)
    try:
        yield
    finally:
        lock.release()


def cache_path(key: dict[str, Any]) -> Path:
    """Where the package of ``key`` is, or would be; a cache that is full of them need not be
    writable."""
    told = {
        **key,
        "options": OPTIONS,
        "code": _CODE,
        "torch": torch.__version__,
        "cpu": cpu_features(),
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    name = f"{digest[:24]}.pt2"
    there = _wanted_folder() / name
    return there if there.is_file() else cache_folder() / name


def _wanted_folder() -> Path:
    return Path(os.environ.get("MLPOT_CACHE") or user_cache_path("mlpot"))


def cache_folder() -> Path:
    """``MLPOT_CACHE``, or the user's cache folder; a temporary one where that is not writable."""
    return _writable(_wanted_folder())


@lru_cache
def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        other = Path(tempfile.mkdtemp(prefix="mlpot-cache-"))
        atexit.register(shutil.rmtree, other, ignore_errors=True)
        warnings.warn(
            f"compiled models cannot be kept in {folder} ({error.strerror}); they go to {other}. "
            "Set MLPOT_CACHE to a folder that you may write to",
            stacklevel=2,
        )
        return other


@lru_cache
def can_compile() -> bool:
    """Is there a C++ compiler that inductor takes?"""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except Exception:  # its own InvalidCxxCompiler, or what a broken compiler causes
        return False


def workers(threads: int) -> ThreadPoolExecutor:
    """Threads for work in parts, each on one core. They are running when this returns, and
    torch's number of threads is what it was: setting it in one thread sets it for later ones."""
    before, together = torch.get_num_threads(), threading.Barrier(threads)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # makes it final for this thread
        together.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="mlpot")
    for waiting in [pool.submit(start) for _ in range(threads)]:
        waiting.result()
    torch.set_num_threads(before)
    return pool


def cpu_features() -> list[str]:
    """Instruction sets of this processor; compiled code may use every one of them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        line = next(line for line in text.splitlines() if line.startswith(("flags", "Features")))
        flags = set(line.partition(":")[2].split())
        return sorted(flag for flag in flags if _INSTRUCTIONS.match(flag))
    except (OSError, StopIteration):
        return [platform.machine(), torch.backends.cpu.get_cpu_capability()]


def _code() -> str:
    """Hash of the code that a package is made from."""
    digest = hashlib.sha256(__version__.encode())
    root = Path(__file__).parent.parent
    # losses are part of compiled training steps
    for path in (*sorted(root.glob("models/*.py")), *sorted(root.glob("train/*.py"))):
        digest.update(path.read_bytes())
    for path in (root / "graph.py",):
        digest.update(path.read_bytes())
    return digest.hexdigest()


#: of the code that is loaded; the files may change while a process runs
_CODE = _code()


class Runner:
    """A package ready to run: tensors in, list of tensors out. Threads may share one.

    Made by `open_runner`.
    """

    def __init__(self, library: ctypes.CDLL, concurrent: int):
        self._library = library
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
            raise RuntimeError(
                "a compiled model failed on its input: an index out of range, or an atomic number "
                "beyond its table"
            )


#: threads that may be inside one package at once; more of them wait
CONCURRENT = os.cpu_count() or 1


def open_runner(path: str | Path, name: str = "model") -> Runner:
    """A package of this kind of processor, ready to run. The same file is opened only once, because
    a library that was loaded stays in memory.

    Args:
        path: ``.pt2``.
        name: of the graph, in a package with several.

    Raises:
        DamagedFileError: truncated, or no package.
        ModelFileError: this machine does not load it.
    """
    path = Path(path)
    try:
        key = (str(path.resolve()), path.stat().st_mtime_ns, name)
        if (known := _OPEN.get(key)) is None:
            keep_buffers()
            known = _OPEN[key] = Runner(_load_library(path, name), CONCURRENT)
        return known
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DamagedFileError(
            f"{path} is truncated, or no compiled model ({error}); make it again"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ModelFileError(
            f"{path} cannot be loaded as a compiled model ({error}): it was made on another kind "
            "of machine, or the temporary folder (TMPDIR) is full or does not allow execution"
        ) from error


_OPEN: WeakValueDictionary[tuple[str, int, str], Runner] = WeakValueDictionary()


_C: Any = torch._C._aoti
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _load_library(path: Path, graph: str) -> ctypes.CDLL:
    inside = f"/aotinductor/{graph}/"
    with zipfile.ZipFile(path) as package, tempfile.TemporaryDirectory(prefix="mlpot-") as folder:
        (name,) = (n for n in package.namelist() if inside in n and n.endswith((".so", ".dylib")))
        return ctypes.CDLL(package.extract(name, folder))  # once loaded, the file may go
