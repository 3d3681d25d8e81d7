"""Freed memory is kept: pages are not faulted in anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from uturn.memory import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
torch.set_num_threads(1)
def work():
    for _ in range(20):
        maps = [torch.ones(16 * 2**20) for _ in range(3)]  # 64 MiB each
        del maps
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_pages_are_used_again() -> None:
    assert faults("keep") * 20 < faults()
