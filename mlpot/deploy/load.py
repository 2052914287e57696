"""Load a model by name or path into an engine."""

import copyreg
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mlpot.deploy.compiled import (
    BLOCKS,
    best_variant,
    compile_cached,
    is_cached,
    read_package,
)
from mlpot.deploy.engines import DTYPES, ENGINES, DeployedModel
from mlpot.deploy.metadata import ENTRY, ExportInfo, parse_export_info
from mlpot.errors import CompileError, InputError, ModelFileError
from mlpot.models.checkpoint import load_potential, write_atomically
from mlpot.models.compiled import cached, can_compile
from mlpot.models.memory import keep_buffers
from mlpot.models.potential import Potential
from mlpot.models.scripting import script, settle
from mlpot.zoo import resolve


def load(
    model: str | Path,
    engine: str = "auto",
    dtype: str | None = None,
    device: str | torch.device = "auto",
) -> DeployedModel:
    """A model ready to run.

    Args:
        model: a zoo name (`mlpot models`), a ``.safetensors`` file, or an exported ``.pt`` or
            ``.pt2``.
        engine: ``eager``, ``torchscript``, ``compiled`` (the first time it compiles, for about
            a minute; for two more at the first structure of thousands of atoms), or ``auto``:
            for weights compiled where that was done before, else eager; for exported files what
            they hold.
        dtype: ``float32`` or ``float64``; None is float32 for weights, and the precision of
            export for exported files, which cannot be changed.
        device: ``cpu``, ``cuda``, ..., or ``auto``: a GPU if there is one.

    Raises:
        UnknownModelError: neither a file nor a zoo name.
        ModelFileError: the file is truncated, altered or no mlpot file.
        InputError: an engine or dtype that this file cannot give, or no such device here.
    """
    if engine not in ("auto", *ENGINES):
        raise InputError(f"engine must be auto, {', '.join(ENGINES)}, got {engine!r}")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype must be {' or '.join(DTYPES)}, got {dtype!r}")
    path, where = resolve(model), _device(device)
    if where.type == "cpu":
        keep_buffers()
    loaded = _load(path, engine, dtype, where)
    loaded.source = path
    return loaded


def _reduced(model: DeployedModel) -> Any:
    """A loaded model is pickled as what it was loaded from: machine code does not travel."""
    if model.source is None:
        return object.__reduce_ex__(model, 2)
    dtype = str(model.dtype).removeprefix("torch.")
    return load, (model.source, model.engine, dtype, model.device)


copyreg.pickle(DeployedModel, _reduced)


def _load(path: Path, engine: str, dtype: str | None, where: torch.device) -> DeployedModel:
    if path.suffix in (".pt", ".pt2"):
        return _load_exported(path, engine, dtype, where)
    potential, info = load_potential(path)
    real = DTYPES[dtype or "float32"]
    potential = potential.to(device=where, dtype=real)
    key = {"weights": info.sha256}
    if engine == "auto" and where.type == "cpu" and is_cached(key, real):
        found = compile_cached(potential, key, may_compile=False)
        if found.opens():  # a damaged package is no reason to compile unasked, or to fail
            return DeployedModel(found, info, "compiled", real, where)
    if engine == "torchscript":
        return DeployedModel(_scripted(potential, key), info, engine, real, where)
    if engine == "compiled":
        _check_cpu(where)
        return DeployedModel(compile_cached(potential, key), info, engine, real, where)
    return DeployedModel(potential, info, "eager", real, where)


def _scripted(potential: Potential, key: dict[str, str]) -> torch.jit.ScriptModule:
    """Tracing takes seconds, so its result is kept in the cache."""
    told = {**key, "engine": "torchscript", "dtype": str(potential.scale.dtype)}
    device = potential.scale.device

    def build(path: Path) -> None:
        buffer = io.BytesIO()
        torch.jit.save(script(potential), buffer)
        write_atomically(path, buffer.getvalue())

    def read(path: Path) -> torch.jit.ScriptModule:
        settle()
        return torch.jit.load(str(path), map_location=device)

    return cached(told, build, read)


def starts_compiled(model: str | Path, dtype: str | None = None) -> bool:
    """Is this model compiled already: a ``.pt2`` file, or weights whose package is cached?"""
    path = resolve(model)
    if path.suffix != ".safetensors" or dtype not in (None, *DTYPES):
        return path.suffix == ".pt2"
    key = {"weights": load_potential(path)[1].sha256}
    return is_cached(key, DTYPES[dtype or "float32"])


def could_compile(
    model: str | Path, dtype: str | None = None, atoms: int = 0, structures: int = 1
) -> str:
    """The variant that these weights lack for structures of so many atoms; empty if they have it,
    or if there is no compiler."""
    path = resolve(model)
    if path.suffix != ".safetensors" or dtype not in (None, *DTYPES) or not can_compile():
        return ""
    potential, info = load_potential(path)
    variant = best_variant(potential, atoms, structures)
    there = is_cached({"weights": info.sha256}, DTYPES[dtype or "float32"], [variant])
    return "" if there else variant


def compile_ahead(
    model: str | Path,
    dtype: str | None,
    atoms: int,
    report: Callable[[str], Any],
    structures: int = 1,
) -> bool:
    """Make machine code before a long run, where that can be done and was not done yet.

    Args:
        atoms: of a structure.
        report: told what is going on, and why the run has to do without it.
        structures: that a call will have.

    Returns:
        whether machine code was made.
    """
    variant = could_compile(model, dtype, atoms, structures)
    if not variant:
        return False
    if variant == BLOCKS:
        report("compiling the model for large structures first, once: two to five minutes")
    else:
        report("compiling the model first, once: about a minute, for a run several times faster")
    try:
        load(model, "compiled", dtype, "cpu").prepare(atoms, structures)
    except (CompileError, ModelFileError) as error:
        report(f"the run goes on without: {error}")
        return False
    return True


def read_exported(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[torch.jit.ScriptModule, ExportInfo]:
    """The script module of an exported file and its description."""
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"no model file at {path}; check the path, or see `mlpot models`")
    extra = {ENTRY: ""}
    settle()
    try:
        module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"{path} cannot be loaded as TorchScript: truncated, or no exported model. Export it "
            f"again with `mlpot export` ({str(error).splitlines()[0]})"
        ) from error
    text = extra[ENTRY]
    if not text:
        raise ModelFileError(
            f"{path} is TorchScript, but not exported by mlpot: it holds no {ENTRY}"
        )
    return module, parse_export_info(text if isinstance(text, str) else text.decode(), str(path))


def _load_exported(
    path: Path, engine: str, dtype: str | None, device: torch.device
) -> DeployedModel:
    holds = "torchscript" if path.suffix == ".pt" else "compiled"
    if engine not in ("auto", holds):
        raise InputError(
            f"{path} holds the {holds} engine; the {engine} engine needs the .safetensors weights"
        )
    module: Any
    if holds == "compiled":
        _check_cpu(device)
        module, info = read_package(path)
    else:
        module, info = read_exported(path, device)
        module = module.eval()
    if dtype is not None and dtype != info.dtype:
        raise InputError(
            f"{path} was exported in {info.dtype}; export it again with --dtype {dtype}"
        )
    return DeployedModel(module, info.model, holds, DTYPES[info.dtype], device)


def _check_cpu(device: torch.device) -> None:
    if device.type != "cpu":
        raise InputError(
            f"the compiled engine runs on a CPU, not on {device}; give device='cpu', or take the "
            "eager or torchscript engine"
        )


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here: {reason}") from error
    return torch.device(device)
