"""The errors that users catch. Every message names the cause and the remedy."""


class MLPotError(Exception):
    """Base of every error that mlpot raises on purpose."""


class InputError(MLPotError, ValueError):
    """A structure, label or option that cannot be used as it is."""


class UnsupportedSystemError(InputError):
    """A system outside what the model covers: element, charge, spin or periodicity."""


class DataError(InputError):
    """A data file that is truncated, lacks labels, or is in other units than it says."""


class DivergedError(InputError):
    """A training whose loss is no number any more."""


class ModelFileError(MLPotError):
    """Weights or an exported model that cannot be trusted: truncated, altered, unknown format."""


class DamagedFileError(ModelFileError):
    """A file that was cut off or altered on its way here; another copy may be sound."""


class UnknownModelError(MLPotError, KeyError):
    """No model of that name in the zoo, and no such file."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class MissingDependencyError(MLPotError, ImportError):
    """An optional package is needed for what was asked."""


class ExportError(MLPotError):
    """The exported model does not reproduce the eager one; nothing was written."""


class CompileError(MLPotError):
    """Machine code could not be made here."""


def require(module: str, extra: str, purpose: str):
    """Import an optional module, or say what to install and why.

    Args:
        module: dotted name of the module.
        extra: name of the mlpot extra, or of the package, that provides it.
        purpose: what it is needed for, as in "reading SMILES".
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs the package '{module.split('.')[0]}', which cannot be imported "
            f"({error}). Install it with: pip install {extra}"
        ) from error
