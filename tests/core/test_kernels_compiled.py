"""Compiles the Triton kernels for an H100 (sm_90), which needs no GPU: they are accepted, nothing spills out of the
registers, rows of logits are read and written 128 bits at a time."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install -e .[dev]")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("nothing is compiled while Triton interprets", allow_module_level=True)

ALIGNED = {"stride", "WIDTH", "PADDED"}
ROW = {
    "Z": "*fp32",
    "TARGET": "*i64",
    "C": "*fp32",
    "B": "*fp32",
    "W": "*fp32",
    "NATS": "*fp32",
    "LSE": "*fp32",
    "G": "*bf16",
}
SUMS = {"Z": "*fp32", "B": "*fp32", "LSE": "*fp32", "C": "*fp32", "OUT": "*fp32"}
DRAW = {"Z": "*fp32", "U": "*fp64", "OUT": "*i64", "temperature": "fp32", "top_p": "fp32"}
THIN = {"X0": "*i64", "P": "*i64", "MIDDLE": "*fp32", "ROW": "*i64", "XT": "*i64", "INPUT": "*bf16", "key": "i64"}
SOFTPLUS = {"RAW": "*bf16", "X0": "*i64", "XT": "*i64", "SCALE": "*fp32", "G": "*bf16", "NATS": "*fp32"}
CASES: list[tuple[str, str, dict[str, str], dict[str, Any], int]] = [
    ("kernels", "row_kernel", ROW, {"BLOCK": 8192, "BIAS": False, "RATES": False, "GRADIENT": True}, 32),
    ("kernels", "row_kernel", ROW, {"BLOCK": 8192, "BIAS": True, "RATES": True, "GRADIENT": True}, 32),
    ("kernels", "row_kernel", ROW, {"BLOCK": 8192, "BIAS": True, "RATES": False, "GRADIENT": False}, 8),
    ("kernels", "class_kernel", SUMS, {"ROWS": 32, "COLUMNS": 128, "BIAS": True}, 4),
    ("kernels", "softplus_kernel", SOFTPLUS, {"BLOCK": 1024, "GRADIENT": True}, 4),
    ("noise_kernels", "uniform_kernel", {"ROW": "*i64", "OUT": "*fp64", "key": "i64"}, {"BLOCK": 512}, 4),
    ("draw_kernels", "draw_kernel", DRAW, {"BLOCK": 2048, "NUCLEUS": False}, 8),
    ("draw_kernels", "draw_kernel", DRAW, {"BLOCK": 2048, "NUCLEUS": True}, 8),
    ("draw_kernels", "thin_kernel", THIN, {"BLOCK": 512, "NUM_BITS": 48}, 4),
]


def binary(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, aligned: bool) -> bytes:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    types = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name not in constants and (types[name].startswith("*") or (aligned and name in ALIGNED))
    }
    positions = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=types, constexprs=positions, attrs=attrs)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    return compiled.asm["cubin"]


def instructions(cubin: bytes, folder: Path) -> tuple[str, str]:
    """(what the binary uses, its instructions), by the tools that come with Triton."""
    path, tools = folder / "kernel.cubin", Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    path.write_bytes(cubin)

    def run(*command: str) -> str:
        return subprocess.run([*command, str(path)], check=True, capture_output=True, text=True).stdout

    return run(str(tools / "cuobjdump"), "-res-usage"), run(str(tools / "nvdisasm"))


def wide(code: str) -> tuple[int, int]:
    """(loads, stores) of 128 bits of global memory."""
    return len(re.findall(r"LDG\.E\S*\.128", code)), len(re.findall(r"STG\.E\S*\.128", code))


@pytest.mark.parametrize(("module", "name", "types", "constants", "warps"), CASES)
def test_compiles_without_spills(
    module: str, name: str, types: dict[str, str], constants: dict[str, Any], warps: int, tmp_path: Path
) -> None:
    kernel = getattr(__import__(f"ggm_lightning.core.{module}", fromlist=[name]), name)
    usage, code = instructions(binary(kernel, types, constants, warps, aligned=True), tmp_path)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found, usage
    registers, stack, local = map(int, found.groups())
    assert registers * warps * 32 <= 65536  # all that a multiprocessor has
    assert (stack, local) == (0, 0), usage
    assert not re.search(r"\b(STL|LDL)\b", code)
    loads, stores = wide(code)
    if name in ("row_kernel", "draw_kernel"):
        assert loads >= 4
    if constants.get("GRADIENT") and name == "row_kernel":
        entries = constants["BLOCK"] // (32 * warps)  # of a thread, eight of bfloat16 to a store
        assert stores >= entries // 8 >= 1


def test_control_rows_that_are_not_aligned_are_read_in_pieces(tmp_path: Path) -> None:
    from ggm_lightning.core import kernels

    _, name, types, constants, warps = CASES[0]
    cubin = binary(getattr(kernels, name), types, constants, warps, aligned=False)
    assert wide(instructions(cubin, tmp_path)[1]) == (0, 0)
