"""mlpot models in TorchSim (torch-sim-atomistic): ``MLPotModel("pretrained-visnet")``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpot_torchsim.model import MLPotModel

__all__ = ["MLPotModel"]


def __getattr__(name: str) -> Any:
    """The adapter on first use, so that importing this package imports neither torch nor mlpot."""
    if name != "MLPotModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlpot.errors import require

    require("torch_sim", "'mlpot[torchsim]'", "running mlpot in TorchSim")
    from mlpot_torchsim.model import MLPotModel

    return MLPotModel
