"""Models here are so small that a second thread only waits, very long on a busy machine."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread(_seed: None) -> None:
    torch.set_num_threads(1)
