"""Buffers that stay: in a process of its own, because it lasts."""

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from mlpot.models.memory import keep_large_buffers

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10_000_000)  # 40 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
told = keep_large_buffers()
for _ in range(5):
    faults()  # the heap grows until it is large enough
print(told, before, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
def test_pages_are_not_fetched_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told, before, after = done.stdout.split()
    if told == "False":
        pytest.skip("no glibc here")
    pages = 5 * 40_000_000 // resource.getpagesize()
    assert int(after) < 0.05 * pages
    assert int(after) < 0.1 * int(before) or int(before) < 0.05 * pages  # huge pages: few anyway
