"""Compiles the Triton kernels for a GPU of compute capability 9.0, with or without one.

Run as a program, in a process where Triton does not interpret. Prints one JSON
line per kernel: its name, head width, bytes of shared memory and whether the
code uses the chip's own matrix instructions.
"""

from __future__ import annotations

import json
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llm_service.runner import fused_kernels as fused
from llm_service.runner.attention import triton_kernels as paged
from shared.families import triton_varlen as varlen

TYPES = {"scale": "fp32", "partial": "*fp32", "marks": "*fp32", "slots": "*i64", "tables": "*i32"}
TYPES |= dict.fromkeys(("lengths", "query_starts", "starts"), "*i32")
TYPES |= dict.fromkeys(("query", "key", "value", "keys", "values", "output"), "*bf16")
TYPES |= dict.fromkeys(
    ("rows", "residual", "weight", "states", "cosines", "sines", "gated", "norms"), "*bf16"
)
TYPES |= {"epsilon": "fp32"}
TARGET = GPUTarget("cuda", 90, 32)


def compile_kernel(kernel: Any, warps: int, **constants: int) -> None:
    """Compiles one kernel for bfloat16 and prints what came of it."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=values)
    compiled = triton.compile(source, target=TARGET, options={"num_warps": warps, "num_stages": 2})
    facts = {
        "kernel": kernel.__name__,
        "width": constants.get("HEAD_DIM"),
        "shared": compiled.metadata.shared,
        "matrix_units": "mma" in compiled.asm["ptx"],
        "code_bytes": len(compiled.asm["cubin"]),
    }
    print(json.dumps(facts), flush=True)


def main() -> None:
    """Compiles every kernel for narrow and wide heads."""
    for width in (64, 80, 128):
        head = {"HEAD_DIM": width, "WIDTH": int(triton.next_power_of_2(width))}
        attention = head | {"WINDOW": 0, "GROUP": 7, "BLOCK_SIZE": 16, "TILE": 64}
        compile_kernel(paged.decode_kernel, 4, ROWS=16, SPLITS=16, **attention)
        compile_kernel(paged.chunk_kernel, 8, ROWS=128, **attention)
        compile_kernel(paged.combine_kernel, 4, SPLITS=16, **head)
        compile_kernel(varlen.varlen_kernel, 8, ROWS=128, TILE=64, **head)
    compile_kernel(paged.write_kernel, 4, HEADS=4, HEAD_DIM=128, SIZE=512)
    compile_kernel(fused.norm_kernel, 8, WIDTH=3584, SIZE=4096, ADDS=1)
    for norms in (0, 1):
        compile_kernel(fused.rotate_kernel, 1, HEADS=28, KEY_HEADS=4, HEAD_DIM=128, HALF=64, NORMS=norms)
    compile_kernel(fused.gate_kernel, 4, WIDTH=18944, COLUMNS=1024)


if __name__ == "__main__":
    main()
