"""Runs test_kernels.py by Triton's interpreter: its switch has to be set before Triton is imported, hence a process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def broken_interpreter() -> bool:
    """That of Triton 3.6, torch 2.11's, makes numbers of arrays of one entry, which NumPy 2.4 no longer does."""
    try:
        import triton
    except ImportError:
        return False
    return triton.__version__ < "3.7" and np.lib.NumpyVersion(np.__version__) >= "2.4.0"


@pytest.mark.slow
@pytest.mark.skipif(broken_interpreter(), reason="Triton 3.6 interprets with older NumPy only: pip install 'numpy<2.4'")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install -e .[dev]")
def test_every_kernel_interpreted() -> None:
    tests = Path(__file__).with_name("test_kernels.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout
