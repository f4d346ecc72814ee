"""Freed memory stays with the process once it is asked to keep it."""

import platform
import subprocess
import sys

import pytest


PROGRAM = """
import resource, sys
from training.distillation.cpu import keep_freed_memory

def pages_of(num_rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(num_rounds):
        parts = [bytearray(12 << 20) for _ in range(3)]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    assert keep_freed_memory()
pages_of(1)
print(pages_of(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's switch")
def test_memory_is_mapped_once() -> None:
    pages = {
        mode: int(subprocess.run([sys.executable, "-c", PROGRAM, mode], check=True, capture_output=True).stdout)
        for mode in ("keep", "default")
    }
    assert pages["keep"] < pages["default"] / 10
