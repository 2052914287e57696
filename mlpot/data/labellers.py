"""What can label: one table of known calculators, and any other ASE calculator by import path."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from mlpot.errors import InputError, MissingDependencyError, MLPotError


class _Known(NamedTuple):
    target: str  # module:callable that makes an ASE calculator (eV, Å)
    extra: str  # what to install
    level: str  # level of theory; {} are options
    options: Mapping[str, Any]  # defaults; None must be given
    closed_shell: bool = True  # refuses an odd number of electrons


_CALCULATORS = "mlpot.data.calculators"

# Without cache_api, reset() forgets the wavefunction too (see without_memory).
_TBLITE = {"verbosity": 0, "cache_api": False}

LABELLERS: dict[str, _Known] = {
    "gfn2-xtb": _Known(
        "tblite.ase:TBLite", "mlpot[xtb]", "GFN2-xTB", {"method": "GFN2-xTB", **_TBLITE}
    ),
    "gfn1-xtb": _Known(
        "tblite.ase:TBLite", "mlpot[xtb]", "GFN1-xTB", {"method": "GFN1-xTB", **_TBLITE}
    ),
    "aimnet2": _Known(f"{_CALCULATORS}:AIMNet2", "torch", "AIMNet2 {model}", {"model": None}),
    "so3lr": _Known(
        "so3krates_torch.calculator.so3:SO3LRCalculator",
        "mlpot[so3lr]",
        "SO3LR",
        {"default_dtype": "float32"},
    ),
    "pyscf": _Known(
        f"{_CALCULATORS}:PySCF", "mlpot[pyscf]", "{xc}/{basis}", {"xc": "b3lyp", "basis": None}
    ),
}

# Options that change how fast, or how loudly, but not what is computed.
_HOW = {"device", "verbosity", "verbose", "cache_api", "threads"}


@dataclass(frozen=True)
class Labeller:
    """How to make a calculator, wherever it is needed. Picklable and small.

    Attributes:
        name: as the user gave it.
        target: module:callable that returns an ASE calculator.
        options: its keyword arguments; files that the user named are absolute, as a worker may
            have another current folder.
        level: level of theory, stored with the labels.
        identity: what makes results of two labellers the same: level, target and options, with
            the content of files instead of their names.
        extra: what to install where the module is absent.
        closed_shell: frames with an odd number of electrons are failures.
    """

    name: str
    target: str
    options: tuple[tuple[str, Any], ...]
    level: str
    identity: str
    extra: str = ""
    closed_shell: bool = False

    def build(self) -> Any:
        """The ASE calculator.

        Raises:
            MissingDependencyError: its package is absent.
            InputError: no such module or callable, or options it does not take.
        """
        module, _, name = self.target.partition(":")
        try:
            make = getattr(_module(module), name)
        except ImportError as error:
            raise MissingDependencyError(
                f"{self.name} cannot be imported ({error}). "
                + (f"Install it with: pip install {self.extra}" if self.extra else _HELP)
            ) from error
        except AttributeError as error:
            raise InputError(f"{self.name}: the module has no '{name}'. {_HELP}") from error
        try:
            calculator = make(**dict(self.options))
        except MLPotError:
            raise
        except Exception as error:
            detail = " ".join(str(error).split())
            given = ", ".join(f"{k}={v}" for k, v in self.options) or "none"
            raise InputError(
                f"{self.name} cannot be set up ({type(error).__name__}: {detail}). Options were: "
                f"{given}; see its documentation for those it takes"
            ) from error
        if not hasattr(calculator, "get_property"):
            raise InputError(
                f"{self.name} made a {type(calculator).__name__}, which is no ASE calculator. "
                f"{_HELP}"
            )
        if self.name not in LABELLERS:  # those work in memory
            _set_apart(calculator)
        return calculator


_HELP = (
    "Give module:callable, where the module can be imported (a file of the current folder can) "
    "and the callable returns an ASE calculator"
)


def labeller(name: str, options: Mapping[str, Any] | None = None, level: str = "") -> Labeller:
    """A labeller by name, or by import path as in ``ase.calculators.emt:EMT``.

    Args:
        name: a key of LABELLERS, or module:callable.
        options: keyword arguments of the calculator.
        level: level of theory to store; left out, what the table says, or the import path, with
            the options that were given.

    Raises:
        InputError: unknown name, or an option that must be given is missing.
    """
    given = dict(options or {})
    known = LABELLERS.get(name)
    if known is None:
        module, colon, function = name.partition(":")
        if not (module and colon and function):
            raise InputError(
                f"unknown labeller '{name}'. Known: {', '.join(LABELLERS)}; or an import path "
                "module:callable, such as ase.calculators.emt:EMT"
            )
        known = _Known(name, "", name, {}, closed_shell=False)
    merged = {**known.options, **{k: _absolute(v) for k, v in given.items()}}
    for option, value in merged.items():
        if value is None and option not in given:
            raise InputError(f"{name} needs the option {option}: --option {option}=...")
    level = level or _level(known, merged, given)
    identity = [known.target, level, {k: _content(v) for k, v in merged.items() if k not in _HOW}]
    return Labeller(
        name=name,
        target=known.target,
        options=tuple(sorted(merged.items())),
        level=level,
        identity=json.dumps(identity, sort_keys=True, default=str),
        extra=known.extra,
        closed_shell=known.closed_shell,
    )


def _level(known: _Known, merged: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    shown = {k: Path(v).stem if _is_file(v) else v for k, v in merged.items()}
    rest = sorted(k for k in given if f"{{{k}}}" not in known.level and k not in _HOW)
    return " ".join([known.level.format(**shown), *(f"{k}={shown[k]}" for k in rest)])


def _is_file(value: Any) -> bool:
    return isinstance(value, str | Path) and len(str(value)) < 1000 and Path(value).is_file()


def _absolute(value: Any) -> Any:
    """A file's whole path; links are kept, as what they point to may have no suffix."""
    return str(Path(value).absolute()) if _is_file(value) else value


def _content(value: Any) -> Any:
    """A file's hash instead of its name: a moved file is the same, a changed one is not."""
    if not _is_file(value):
        return value
    with open(value, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _set_apart(calculator: Any) -> None:
    """A folder of its own for what writes files: in one folder, workers read each other's results
    and label a frame with the energy of another.

    A folder that the user named gets a subfolder, which stays; else it is a temporary one, which
    goes with the calculator.
    """
    named = getattr(calculator, "directory", None)
    if named is None:
        return
    if str(named) not in ("", "."):
        folder = Path(named).absolute() / f"worker-{os.getpid()}-{threading.get_native_id()}"
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(tempfile.mkdtemp(prefix="mlpot-label-"))
        weakref.finalize(calculator, shutil.rmtree, folder, ignore_errors=True)
    calculator.directory = folder if isinstance(named, Path) else str(folder)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        # A console script does not look into the current folder, where people keep theirs.
        folder = os.getcwd()
        if error.name != name.split(".")[0] or folder in sys.path:
            raise
        sys.path.append(folder)
        return import_module(name)


# --- on the worker -------------------------------------------------------------------------------

# One calculator a thread: they are slow to make, keep results inside, and share no locks.
_made = threading.local()


def calculator(labeller: Labeller) -> Any:
    """The calculator of this thread, made when it is first asked for, and without memory."""
    if getattr(_made, "labeller", None) != labeller:
        _made.calculator = labeller.build()
        _made.labeller = labeller
    without_memory(_made.calculator)
    return _made.calculator


def without_memory(calc: Any) -> None:
    """Forget the structure before: its wavefunction as a guess changes forces by 1e-4 eV/Å."""
    if hasattr(calc, "reset"):
        calc.reset()


def forget_calculator() -> None:
    """Make a new one next time: an exception may have left it in any state."""
    _made.labeller = None


def probe(labeller: Labeller) -> None:
    """Raise now what would make every frame a failure."""
    calculator(labeller)
