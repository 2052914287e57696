"""Buffers that stay: in a process of its own, because it lasts."""

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from mlpot.models import memory

size = int(sys.argv[2])

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(size // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
told = getattr(memory, sys.argv[1])()
for _ in range(5):
    faults()  # the heap grows until it is large enough
print(told, before, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
@pytest.mark.parametrize(
    ("function", "size"), [("keep_buffers", 20_000_000), ("keep_large_buffers", 40_000_000)]
)
def test_pages_are_not_fetched_again(function: str, size: int) -> None:
    command = [sys.executable, "-c", PROGRAM, function, str(size)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told, before, after = done.stdout.split()
    if told == "False":
        pytest.skip("no glibc here")
    pages = 5 * size // resource.getpagesize()
    assert int(after) < 0.05 * pages
    assert int(after) < 0.1 * int(before) or int(before) < 0.05 * pages  # huge pages: few anyway
