"""Triton's kernels without a GPU: what a function would start, compiled for GPUs, and the bytes that it moves."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for CUDA")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

from rethink_imagenet.networks.kernels import interpreted  # noqa: E402

AMPERE, HOPPER = 80, 90
POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float64: "*fp64",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8", torch.bool: "*i1",
}  # fmt: skip
OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion"}


class Launch(NamedTuple):
    """A kernel with the types of its arguments, as PyTorch's launcher tells them apart."""

    function: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    multiples: tuple[str, ...]  # arguments that are known to be multiples of 16
    options: tuple[tuple[str, Any], ...]


def as_launch(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Launch:
    """What the launcher would compile."""
    options = {key: named.pop(key) for key in OPTIONS & named.keys()}
    values = dict(zip(function.arg_names, arguments, strict=False)) | named
    fixed = {p.name for p in function.params if p.is_constexpr}
    constants = {k: v for k, v in values.items() if k in fixed or v is None or (isinstance(v, int) and v == 1)}
    kinds = {bool: "i1", int: "i32", float: "fp32"}
    of = {k: POINTERS[v.dtype] if isinstance(v, torch.Tensor) else kinds.get(type(v)) for k, v in values.items()}
    signature = tuple((name, "constexpr" if name in constants else of[name]) for name in function.arg_names)
    known = [k for k, v in values.items() if isinstance(v, torch.Tensor) or (isinstance(v, int) and v % 16 == 0)]
    multiples = tuple(k for k in function.arg_names if k in known and k not in constants)
    return Launch(function, signature, tuple(constants.items()), multiples, tuple(sorted(options.items())))


@contextmanager
def recorded() -> Iterator[dict[Launch, None]]:
    """Inside, kernels are noted and not run; their results are what lay in memory."""
    launches: dict[Launch, None] = {}

    def run(function: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        launches[as_launch(function, arguments, named)] = None

    with interpreted(), patch.object(triton.JITFunction, "run", run):
        yield launches


def compiled(launch: Launch, capability: int) -> Any:
    """What Triton makes of a kernel for a generation of GPUs."""
    attributes = {(launch.function.arg_names.index(k),): [["tt.divisibility", 16]] for k in launch.multiples}
    source = ASTSource(launch.function, dict(launch.signature), dict(launch.constants), attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))


def resources(launch: Launch, capability: int, folder: Path) -> tuple[int, int]:
    """Compile; registers of a thread, and bytes of memory that it uses in place of more."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled(launch, capability).asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    numbers = dict(word.split(":") for word in said.split() if word.count(":") == 1 and not word.endswith(":"))
    return int(numbers["REG"]), int(numbers["STACK"]) + int(numbers["LOCAL"])


class Moved:
    """Bytes that kernels read and write in the interpreter."""

    read = written = 0


@contextmanager
def counted() -> Iterator[Moved]:
    """Inside, the interpreter runs kernels, and counts what they move."""
    moved, load, store = Moved(), InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        moved.read += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        moved.written += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
        return store(self, pointers, value, mask, *rest)

    with (
        interpreted(),
        patch.multiple(InterpreterBuilder, create_masked_load=counted_load, create_masked_store=counted_store),
    ):
        yield moved
