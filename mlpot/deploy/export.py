"""Export: one file with its description inside, checked against eager before it is written."""

import errno
import io
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mlpot import __version__
from mlpot.deploy.compiled import (
    VARIANTS,
    Only,
    compile_variant,
    read_package,
    write_package,
)
from mlpot.deploy.engines import DTYPES
from mlpot.deploy.metadata import ENTRY, Dtype, ExportInfo
from mlpot.deploy.selfcheck import deviation
from mlpot.errors import ExportError, InputError
from mlpot.models.checkpoint import ModelInfo, load_potential, write_atomically
from mlpot.models.compiled import can_compile, cpu_features, open_runner
from mlpot.models.potential import Potential
from mlpot.models.scripting import script
from mlpot.zoo import resolve

#: format -> what the file must be named
FORMATS = {"torchscript": ".pt", "aoti": ".pt2"}


def export(
    model: str | Path,
    out: str | Path,
    dtype: Dtype = "float32",
    format: str = "torchscript",
) -> ExportInfo:
    """Write a model as one file that hosts can load without its Python classes.

    Args:
        model: a zoo name or a ``.safetensors`` file with an energy head.
        out: the file to write, ``.pt`` for torchscript, ``.pt2`` for aoti.
        dtype: precision of the exported model; total energies are float64 in any case.
        format: ``torchscript``, or ``aoti``: machine code for processors like this one, several
            times faster on a CPU; needs a C++ compiler here and none where it runs.

    Returns:
        the description that is now inside the file.

    Raises:
        ExportError: the exported model differs from eager; nothing was written.
    """
    if format not in FORMATS:
        raise InputError(f"format must be {' or '.join(FORMATS)}, got {format!r}")
    if Path(out).suffix != FORMATS[format]:
        raise InputError(
            f"a model exported as {format} must be named *{FORMATS[format]}, got {out}"
        )
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    check_target(Path(out))
    path = resolve(model)
    if path.suffix in FORMATS.values():
        raise InputError(f"{path} is exported already; export from the .safetensors weights")
    potential, info = load_potential(path)
    potential = potential.to(DTYPES[dtype])
    write = _export_script if format == "torchscript" else _export_compiled
    return write(potential, info, dtype, Path(out))


def check_target(out: Path) -> None:
    """Can a file be written there? Before minutes of work.

    Raises:
        InputError: it cannot.
    """
    try:
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}. Name another file") from error


def _export_script(potential: Potential, info: ModelInfo, dtype: Dtype, out: Path) -> ExportInfo:
    scripted = script(potential)
    reloaded = torch.jit.load(io.BytesIO(_bytes(scripted, "{}")))
    described = _described("torchscript", [scripted, reloaded], potential, info, dtype)
    write_atomically(out, _bytes(scripted, described.model_dump_json()))
    return described


def _export_compiled(potential: Potential, info: ModelInfo, dtype: Dtype, out: Path) -> ExportInfo:
    if not can_compile():
        raise ExportError("format aoti needs a C++ compiler (g++); install one, or use torchscript")
    with tempfile.TemporaryDirectory() as folder:
        packages = {variant: Path(folder) / f"{variant}.pt2" for variant in VARIANTS}
        for variant, path in packages.items():
            compile_variant(potential, variant, path)
        candidates = [Only(v, open_runner(path)) for v, path in packages.items()]
        described = _described("compiled", candidates, potential, info, dtype)
        joined = Path(folder) / "joined.pt2"
        write_package(packages, described, joined)
        read_package(joined)  # what is written is what can be read
        write_atomically(out, joined.read_bytes())
    return described


def _described(
    engine: Literal["torchscript", "compiled"],
    candidates: list[Any],
    potential: Potential,
    info: ModelInfo,
    dtype: Dtype,
) -> ExportInfo:
    """The description of an export that passes its self-check."""
    found = [deviation(c, potential, info.elements, DTYPES[dtype]) for c in candidates]
    energy, force, excess = (float(np.max(column)) for column in zip(*found, strict=True))
    if not excess <= 1:  # NaN fails too
        raise ExportError(
            f"the exported {info.name} differs from eager by {energy:.2e} eV per atom and "
            f"{force:.2e} eV/Å in {dtype}, {excess:.1f} times what is tolerated. Nothing was "
            "written; please report this with your torch version"
        )
    return ExportInfo(
        engine=engine,
        cpu=cpu_features() if engine == "compiled" else [],
        dtype=dtype,
        mlpot=__version__,
        torch=torch.__version__,
        energy_deviation=energy,
        force_deviation=force,
        model=info,
    )


def _bytes(scripted: torch.jit.ScriptModule, description: str) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer, _extra_files={ENTRY: description})
    return buffer.getvalue()
