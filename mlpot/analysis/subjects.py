"""What is tested: an mlpot model or any ASE calculator, as one object that `Replicas` can drive."""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlpot.data.label import calculate
from mlpot.data.labellers import LABELLERS, Labeller, labeller, probe
from mlpot.data.record import Record
from mlpot.deploy.engines import DeployedModel
from mlpot.deploy.load import load
from mlpot.deploy.metadata import check_system
from mlpot.errors import InputError, UnknownModelError, UnsupportedSystemError
from mlpot.graph import Graph
from mlpot.models.checkpoint import ModelInfo
from mlpot.models.potential import Prediction
from mlpot.zoo import resolve

#: Å; a calculator finds its own neighbours. Far enough to see overlapping atoms at the door
_NO_CUTOFF = 1.0

#: atoms of a batch: on a CPU more are no faster (the compiled engine cuts them into parts anyway),
#: and small batches can be shared out to processes and are soon in the records
_CPU_ATOMS, _GPU_ATOMS = 200, 20_000


@dataclass(frozen=True)
class Subject:
    """How to make what is tested, wherever it is needed. Picklable and small.

    Attributes:
        name: for people.
        identity: two subjects of one identity give the same forces (to rounding).
        model: file of an mlpot model; None for a calculator.
        engine, dtype, device: of `mlpot.deploy.load.load`.
        labeller: how to make the ASE calculator; None for a model.
    """

    name: str
    identity: str
    model: str | None = None
    engine: str = "auto"
    dtype: str | None = None
    device: str = "auto"
    labeller: Labeller | None = None

    def open(self) -> DeployedModel:
        """The model of this thread, made when it is first asked for.

        Raises:
            MLPotError: it cannot be loaded, or its package is absent.
        """
        if getattr(_opened, "subject", None) != self:
            _opened.model = self._open()
            _opened.subject = self
        return _opened.model

    def close(self) -> None:
        """Forget the model of this thread, so that the next `open` finds a compiled one."""
        _opened.subject = None

    def _open(self) -> DeployedModel:
        if self.labeller is None:
            assert self.model is not None
            return load(self.model, self.engine, self.dtype, self.device)
        return CalculatorModel(self.labeller)

    @property
    def batch_atoms(self) -> int:
        """Atoms that are worth a batch; a calculator gains nothing from one."""
        if self.labeller is not None:
            return 1
        return _CPU_ATOMS if self.open().device.type == "cpu" else _GPU_ATOMS

    def refuses(self, numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> str:
        """Why it does not take such a system, "" if it does. A calculator has to be run."""
        model = self.open()
        try:
            check_system(model.info, numbers)
            if isinstance(model, CalculatorModel):
                model.evaluate(numbers, positions)
        except UnsupportedSystemError as error:
            return str(error)
        except Exception as error:  # calculators raise whatever they like
            if self.labeller is None:
                raise
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        return ""


_opened = threading.local()


class CalculatorModel(DeployedModel):
    """An ASE calculator behind the interface of a deployed model: one structure after another.

    A structure that the calculator raises for, or gives no finite numbers for, has NaN energy
    and forces, so that `Replicas` takes it out.

    Attributes:
        trouble: why, in words, of the last such structure since `forget`; "" if there was none.
        failed: whether the calculator raised an exception of its own. Else it gave an answer, if
            no number, or the structure was one that no potential can be asked for.
    """

    def __init__(self, how: Labeller):
        info = ModelInfo(
            name=how.name,
            config={"cutoff": _NO_CUTOFF},
            elements=list(range(1, 119)),  # what it covers it says when it is called
            level=how.level,
        )
        super().__init__(self._predict, info, "ase", torch.float64)
        self.labeller = how
        self.forget()

    def forget(self) -> None:
        self.trouble, self.failed = "", False

    def evaluate(
        self, numbers: NDArray[np.int64], positions: NDArray[np.floating], charge: int = 0
    ) -> tuple[float, NDArray[np.float64]]:
        """Energy (eV) and forces [N, 3] (eV/Å) of one structure; raises what the calculator does.

        It starts without memory of other structures, so that a run does not depend on them.
        """
        result = calculate(self.labeller, Record(numbers, positions, charge=charge))
        return result["energy"], np.array(result["forces"])

    def _predict(self, graph: Graph) -> Prediction:
        owner, count = graph.batch.numpy(), graph.cell.shape[0]
        energy, forces = np.full(count, np.nan), np.full((len(owner), 3), np.nan)
        numbers, positions = graph.numbers.numpy(), graph.positions.detach().numpy()
        for b in range(count):
            atoms = owner == b
            try:
                energy[b], forces[atoms] = self.evaluate(numbers[atoms], positions[atoms])
            except Exception as error:  # far from a minimum calculators raise whatever they like
                self.trouble = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
                # ours: no finite numbers, or atoms on top of each other
                self.failed = not isinstance(error, InputError)
        e = torch.from_numpy(energy)
        return Prediction(e, torch.from_numpy(forces), torch.zeros_like(graph.cell), e)


def subject(
    name: str,
    options: Mapping[str, Any] | None = None,
    engine: str = "auto",
    dtype: str | None = None,
    device: str = "auto",
) -> Subject:
    """An mlpot model by name or file; or a calculator by name or import path.

    Args:
        name: as for `mlpot.deploy.load.load`, or as for `mlpot.data.labellers.labeller`.
        options: keyword arguments of a calculator.
        engine, dtype, device: of a model.

    Raises:
        UnknownModelError: none of these.
        InputError: options that do not fit.
        MissingDependencyError: the calculator's package is absent.
    """
    if name in LABELLERS or (":" in name and not Path(name).exists()):
        how = labeller(name, options)
        probe(how)
        return Subject(name=how.level, identity=how.identity, labeller=how)
    try:
        path = resolve(name)
    except UnknownModelError as error:
        raise UnknownModelError(
            f"{error}. Or an ASE calculator: {', '.join(LABELLERS)}, or an import path "
            "module:callable"
        ) from error
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    identity = f"{digest} {dtype or 'default'}"
    told = name if not Path(name).exists() else path.stem
    return Subject(told, identity, str(path.absolute()), engine, dtype, device)
