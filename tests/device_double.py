"""A test double of a GPU, for machines without one: tensors that say they are on `cuda:0` and compute on the CPU.

    with Device() as device:
        model, images = model.to("cuda"), [image.to("cuda", non_blocking=True) for image in images]
        device.reset()
        model(images, targets)
    print(device.table(), device.waits, device.launches)

It raises where tensors of the two kinds meet in one operation, as CUDA does. It counts each point where the host waits
for the device, with the place in the library, and the operations that the device would be given.

How it is made. A tensor on the device is an `OnDevice`, a subclass that wraps a CPU tensor and has its sizes and
strides. In C++ its device is `cpu:0`, which PyTorch keeps apart from the `cpu` of plain tensors; in Python it says
`cuda:0`. Thus autograd runs in the calling thread and autocast by the CPU's rules, and all numbers are the CPU's to the
bit. (With `cuda` in C++ too, autograd asks the driver for a stream, and the process ends.) Tensors that C++ makes by
the options of another one are asked for on `cpu:0`, so that they are known to belong to the device.

Triton's kernels are run by its interpreter, so that what only a GPU does is done here too.

What it cannot know: how many kernels an operation launches (each counts as one, views and allocations as none), and
what CUDA's autocast and its kernels do otherwise, such as the copies of PyTorch's group norm in channels_last.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
import torchvision  # noqa: F401  registers its operations
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from rethink_imagenet.networks import kernels

try:
    from triton.runtime.jit import JITFunction
except ImportError:  # it comes with PyTorch's builds for CUDA
    JITFunction = None

INSIDE = torch.device("cpu:0")  # what C++ takes the device for
OUTSIDE = torch.device("cuda:0")  # what Python is told
WAITS = {
    "_local_scalar_dense": 1, "equal": 1, "nonzero": 1, "masked_select": 1, "nms": 1, "_unique2": 1, "_unique": 1,
    "unique_dim": 1, "unique_consecutive": 1, "unique_dim_consecutive": 1, "bincount": 2,  # its smallest and largest
}  # fmt: skip
NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh",
             "_local_scalar_dense", "_reshape_alias"}  # fmt: skip
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
ALLOW_SCALARS = {"where", "fill", "fill_", "masked_fill", "masked_fill_", "index_put", "index_put_"}


class OnDevice(Tensor):
    """A tensor on the device: wraps one on the CPU, and has its sizes and strides."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        """As autograd and autocast see it."""
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=INSIDE,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the CPU."""
        return _compute(func, args, kwargs or {}, None)

    data = property(lambda self: self.detach())  # not to be set: that would leave what is wrapped behind
    device = property(lambda self: OUTSIDE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        """The number of the GPU."""
        return 0

    def tolist(self) -> Any:
        """One copy to the host."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """As CUDA refuses it."""
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        return self.detach().cpu().numpy()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """As CUDA refuses it."""
        return self.numpy()

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        """A blocking copy of what is made on the host."""
        return torch.tensor(data, dtype=dtype or self.dtype, **kwargs).to(INSIDE)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file gets a copy on the host, as with `map_location="cpu"`."""
        return self.detach().cpu().__reduce_ex__(protocol)

    def __repr__(self, **kwargs: Any) -> str:
        """Without a wait."""
        return f"OnDevice({self.inner!r})"


def _on_device(device: Any) -> bool:
    """Whether a device is the double, by either of its names."""
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and (device.type == "cuda" or device == INSIDE)


def _is_view(func: Any) -> bool:
    """Whether an operation gives another view of the same memory."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: "Device | None") -> Any:
    """Run an operation of the device, or between it and the host, on the tensors within."""
    name, leaves = func._schema.name.split("::")[1], [*tree_leaves(args), *tree_leaves(kwargs)]
    ours = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
    theirs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, OnDevice)]
    asked = kwargs.get("device")
    to_device = bool(ours) if asked is None else _on_device(asked)
    if name == "copy_":
        to_device = isinstance(args[0], OnDevice)
    waits = _waits(func, name, args, kwargs, ours, theirs, to_device)
    if device is not None:
        device.count(name, waits, 0 if name in NO_LAUNCH or _is_view(func) else 1)
    if name == "scalar_tensor" and not ours:
        to_device = False  # a number that is put into a tensor: CUDA takes it from the host
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
    out = func(*plain_args, **plain_kwargs)
    known = {id(leaf.inner): leaf for leaf in ours} | {id(leaf): leaf for leaf in theirs}
    for leaf in ours:
        if leaf.inner.shape != leaf.shape or leaf.inner.stride() != leaf.stride():
            raise NotImplementedError(f"{func} changes the shape of its argument, which the double cannot follow")

    def outer(leaf: Any) -> Any:
        """What is written in place stays itself; what is new belongs to the device or to the host."""
        if not isinstance(leaf, Tensor) or id(leaf) in known:
            return known.get(id(leaf), leaf)
        return OnDevice(leaf) if to_device else leaf

    return tree_map(outer, out)


def _inner(leaf: Any) -> Any:
    """The CPU's tensor within one of the device, or whatever it is."""
    return leaf.inner if isinstance(leaf, OnDevice) else leaf


def _waits(
    func: Any, name: str, args: Any, kwargs: Any, ours: list[OnDevice], theirs: list[Tensor], to_device: bool
) -> dict[str, int]:
    """How often the host waits in an operation, by kind. Raises RuntimeError where host and device meet."""
    if name == "_to_copy" or (name == "copy_" and ours and theirs):
        source_here = isinstance(args[0 if name == "_to_copy" else 1], OnDevice)
        if source_here and not to_device:
            return {"copy to the host": 1}
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        return {"blocking copy to the device": 1} if not source_here and to_device and blocking else {}
    if not ours:
        return {}
    if name in INDEXED:
        return _waits_of_indices(func, name, args, theirs)
    _check_together(func, name, args, theirs)
    if name == "repeat_interleave":
        return {} if kwargs.get("output_size") is not None else {name: 1}
    return {name.strip("_"): WAITS[name]} if name in WAITS else {}


def _check_together(func: Any, name: str, args: Any, theirs: list[Tensor]) -> None:
    """Raises RuntimeError as CUDA does: beside tensors of the device only numbers may come from the host."""
    pointwise = torch.Tag.pointwise in func.tags or name in ALLOW_SCALARS
    written = name.endswith("_") and isinstance(args[0], Tensor) and not isinstance(args[0], OnDevice)
    if theirs and (written or not pointwise or any(tensor.ndim for tensor in theirs)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices: {func}")


def _waits_of_indices(func: Any, name: str, args: Any, theirs: list[Tensor]) -> dict[str, int]:
    """Waits of x[indices]: masks become positions, and what is on the host is copied."""
    target, indices, values = args[0], [index for index in args[1] if index is not None], args[2:3]
    if not isinstance(target, OnDevice):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    _check_together(func, name, args, [leaf for leaf in values if any(leaf is other for other in theirs)])
    from_host = sum(not isinstance(index, OnDevice) for index in indices)
    masks = sum(index.dtype in (torch.bool, torch.uint8) for index in indices if isinstance(index, OnDevice))
    number = len(values) == 1 and values[0].numel() == 1 and not isinstance(values[0], OnDevice)
    if number and masks == len(indices) == 1 and not any(args[3:4]):
        masks = 0  # PyTorch makes it a masked_fill
    return {kind: count for kind, count in (("index on the host", from_host), ("mask as index", masks)) if count}


class _Factories(TorchFunctionMode):
    """Functions that are asked for a tensor on `cuda` get the name that C++ knows the double by."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0].to(INSIDE, non_blocking=kwargs.get("non_blocking", False))
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _on_device(kwargs.get("device")):
            if isinstance(args[0], OnDevice):
                return func(*args, **kwargs | {"device": INSIDE})
            return func(*args, **kwargs | {"device": "cpu"}).to(INSIDE)
        kwargs.pop("pin_memory", None)
        args = tuple(INSIDE if self._is_name(arg) else arg for arg in args)
        return func(*args, **{key: INSIDE if self._is_name(value) else value for key, value in kwargs.items()})

    @staticmethod
    def _is_name(value: Any) -> bool:
        """Whether an argument is the device."""
        return isinstance(value, str | torch.device) and _on_device(value)


class _Operations(TorchDispatchMode):
    """Every operation of PyTorch passes here; those of the device are counted."""

    def __init__(self, device: "Device"):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = (*tree_leaves(args), *tree_leaves(kwargs))
        if _on_device(kwargs.get("device")) or any(isinstance(leaf, OnDevice) for leaf in leaves):
            return _compute(func, args, kwargs, self.device)
        return func(*args, **kwargs)


class _Autocast(torch.autocast):
    """`torch.autocast("cuda")` by the CPU's rules, and known as CUDA's as well."""

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, **kwargs: Any):
        cuda = device_type.startswith("cuda")
        self.before: tuple[bool, torch.dtype] | None = None
        self.cuda = cuda
        super().__init__("cpu" if cuda else device_type, dtype or (torch.bfloat16 if cuda else None), **kwargs)

    def __enter__(self) -> Any:
        entered = super().__enter__()
        if self.cuda:
            self.before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
            torch.set_autocast_enabled("cuda", self._enabled)
            torch.set_autocast_dtype("cuda", self.fast_dtype)
        return entered

    def __exit__(self, *error: Any) -> Any:
        if self.before is not None:
            torch.set_autocast_enabled("cuda", self.before[0])
            torch.set_autocast_dtype("cuda", self.before[1])
        return super().__exit__(*error)


class _Stream:
    """A stream or an event: what was given to it is done at once."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.device = OUTSIDE

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *error: Any) -> None: ...

    def record(self, *args: Any) -> None:
        """Nothing to note."""

    wait_stream = wait_event = wait = record_event = record

    def query(self) -> bool:
        """It is done."""
        return True


def _kernels(device: "Device") -> dict[str, Callable[..., Any]]:
    """What Triton's kernels do on the double: its interpreter runs them on the tensors within."""
    from triton.runtime.interpreter import InterpretedFunction

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        device.count(kernel.fn.__name__, {}, 1)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            inner_args, inner_kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
            interpreted = InterpretedFunction(kernel.fn)
            rewritten = interpreted.rewrite()  # annotations that were strings have come out as strings of strings
            rewritten.__annotations__ = {name: str(kind).strip("'") for name, kind in rewritten.__annotations__.items()}
            interpreted.run(*inner_args, grid=grid, warmup=warmup, **inner_kwargs)

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        return InterpretedFunction(function.fn)(*args, **kwargs)

    return {"run": run, "__call__": call}


class Device(ExitStack):
    """While entered, there is a GPU. Counts `waits` and `launches`; `places` says where the host waited."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[tuple[str, str]] = Counter()  # (place in the library, kind of wait)
        self.operations: Counter[str] = Counter()  # launched, by name

    @property
    def waits(self) -> int:
        """How often the host has waited."""
        return sum(self.places.values())

    @property
    def launches(self) -> int:
        """How many operations the device was given."""
        return sum(self.operations.values())

    def reset(self) -> None:
        """Begin to count anew."""
        self.places.clear()
        self.operations.clear()

    def count(self, name: str, waits: dict[str, int], launches: int = 0) -> None:
        """Note an operation."""
        for kind, number in waits.items():
            self.places[_place(), kind] += number
        if launches:
            self.operations[name] += launches

    def table(self) -> str:
        """Where the host waited, most often first."""
        rows = [f"{number:5d}  {place}  {kind}" for (place, kind), number in self.places.most_common()]
        return "\n".join([*rows, f"{self.waits:5d}  waits, {self.launches} launches"])

    def _synchronize(self, *args: Any) -> None:
        """A wait, and nothing else."""
        self.count("synchronize", {"synchronize": 1})

    def __enter__(self) -> "Device":
        """Pretend that there is a GPU, with this PyTorch's functions for one."""
        stream = _Stream()
        answers: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
            "is_bf16_supported": lambda *args, **kwargs: True, "set_device": lambda device: None,
            "synchronize": self._synchronize, "max_memory_allocated": lambda *args: 0, "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda *args: None, "memory_allocated": lambda *args: 0,
            "get_device_name": lambda *args: "a double", "get_device_capability": lambda *args: (9, 0),
            "is_current_stream_capturing": lambda: False, "current_stream": lambda *args: stream,
            "Stream": _Stream, "stream": lambda given: given, "mem_get_info": lambda *args: (2**36, 2**36),
        }  # fmt: skip
        for name, answer in answers.items():
            self.enter_context(mock.patch.object(torch.cuda, name, answer))
        event = type("Event", (_Stream,), {"synchronize": self._synchronize})
        self.enter_context(mock.patch.object(torch.cuda, "Event", event))
        compatible = torch._has_compatible_shallow_copy_type  # whether a module may keep a parameter and set its data
        self.enter_context(mock.patch.object(torch, "_has_compatible_shallow_copy_type", lambda one, other: not (
            isinstance(one, OnDevice) or isinstance(other, OnDevice)) and compatible(one, other)))  # fmt: skip
        self.enter_context(mock.patch.object(torch, "autocast", _Autocast))
        self.enter_context(mock.patch.object(Tensor, "pin_memory", lambda tensor, *args: tensor))
        for name in ("device", "device_of"):
            self.enter_context(mock.patch.object(torch.cuda, name, lambda *args: nullcontext()))
        if JITFunction is not None:
            self.enter_context(kernels._language_kept())
            for name, answer in _kernels(self).items():
                self.enter_context(mock.patch.object(JITFunction, name, answer))
            self.enter_context(mock.patch.object(kernels, "_compiles_for", lambda device: True))
        self.enter_context(_Factories())
        self.enter_context(_Operations(self))
        return self


def _frames() -> Iterator[FrameType]:
    """The calls that led here, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place() -> str:
    """The line of the library that is at work, or of whoever called PyTorch."""
    frames = [frame for frame in _frames() if frame.f_code.co_filename != __file__]
    ours = [frame for frame in frames if Path(frame.f_code.co_filename).parent.name == "rethink_imagenet"]
    others = [frame for frame in frames if "site-packages" not in frame.f_code.co_filename]
    frame = (ours or others or frames)[0]
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
