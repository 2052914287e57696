"""The factory that openmmml finds by entry point. It must import without torch and mlpot."""

from typing import Any

from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory


class MLPotFactory(MLPotentialImplFactory):
    """Makes the implementation of the potentials ``pretrained-visnet`` and ``mlpot``."""

    def createImpl(self, name: str, **args: Any) -> MLPotentialImpl:
        raise NotImplementedError(f"the potential {name!r} is not built yet")
