"""What every test shares: reproducible random numbers, one thread, the data beside the clone."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("mlpot", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mlpot")

# Tests are small: a second thread gains nothing, and where cores are busy it waits in a spin loop
# that makes the suite ten times slower. Before torch or OpenMM start their pools, and inherited
# by subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiled models of a user neither make tests pass nor are touched by them."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):  # its workers share what any of them compiled
        base = base.parent
    os.environ["MLPOT_CACHE"] = str(base / "compiled")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random numbers for a test whether it runs alone or among others."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):  # only where a test module has imported it already
        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data sets, published weights and parity numbers beside the clone."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared (data that are not part of a clone)")
    return path
