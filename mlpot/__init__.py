"""mlpot: molecular dynamics on a machine-learned potential of your molecule.

Public names are resolved on first use, so that ``import mlpot`` costs nothing and
imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Graph": "mlpot.graph",
    "MLPotCalculator": "mlpot.calculator",
    "MLPotError": "mlpot.errors",
    "Potential": "mlpot.models.potential",
    "Prediction": "mlpot.models.potential",
    "available_models": "mlpot.zoo",
    "export": "mlpot.deploy.export",
    "load": "mlpot.deploy.load",
}

__all__ = sorted([*_PUBLIC, "__version__"])

if TYPE_CHECKING:
    from mlpot.calculator import MLPotCalculator as MLPotCalculator
    from mlpot.deploy.export import export as export
    from mlpot.deploy.load import load as load
    from mlpot.errors import MLPotError as MLPotError
    from mlpot.graph import Graph as Graph
    from mlpot.models.potential import Potential as Potential
    from mlpot.models.potential import Prediction as Prediction
    from mlpot.zoo import available_models as available_models


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mlpot' has no attribute {name!r}")
    # A lazy submodule of the same name (mlpot.deploy.load) must not win over the function.
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
