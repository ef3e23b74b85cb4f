"""A pretended GPU: tensors that report another device, keep their values on the CPU, and behave as CUDA tensors do.

Tensors of two devices in one call raise, ``.numpy()`` raises, and every call that would make the program wait for a GPU
is counted with the line that makes it. The reported device is torch's ``meta``, the one device without values that
every build of torch has. gsplat's kernels are the double in ``gsplat_double.py``. Waits inside gsplat's compiled code
are not seen: it waits once per render, for the number of tiles. ``pretended_streams.py`` has its streams.
"""

from __future__ import annotations

import collections
import sys
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import gsplat_double
import pytest
import torch
from pretended_streams import Streams
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gs_train.render.gsplat_cuda import GsplatRasterizer
from gs_train.render.select import Selection
from gs_train.run import checkpoint

DEVICE = torch.device("meta")
PHOTO_MEMORY = 10**8

_WAITING = frozenset(
    "_local_scalar_dense is_nonzero nonzero equal masked_select unique_dim _unique2 bincount linalg_inv".split()
)
"""Operators whose result the CPU must see."""
_INDEXING = frozenset("index index_put index_put_ _index_put_impl_ _unsafe_index".split())
_COPYING = frozenset("_to_copy copy_".split())
_STAGED_BYTES = 64 * 1024
"""Up to this size CUDA copies from ordinary memory without a wait, if the copy does not block."""


class PretendedTensor(torch.Tensor):
    """A tensor that reports ``DEVICE``; ``values`` is the same tensor on the CPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> PretendedTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=DEVICE,
        )
        wrapper.values = values
        _alive.add(wrapper)
        return wrapper

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendedTensor({self.values})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        # The mode is always active; it handles every operator.
        raise RuntimeError(f"{func} ran outside of PretendedDevice")

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        return self.cpu().tolist()


_alive: weakref.WeakSet[PretendedTensor] = weakref.WeakSet()


def each_of(change: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with ``change`` applied to every element of its lists, tuples and dicts (much faster than tree_map)."""
    if type(value) in (tuple, list):
        return type(value)([each_of(change, each) for each in value])
    if type(value) is dict:
        return {key: each_of(change, each) for key, each in value.items()}
    return change(value)


def to_cpu(value: Any) -> Any:
    """The CPU tensor of a pretended tensor, and the CPU in place of its device; else ``value``."""
    if type(value) is PretendedTensor:
        return value.values
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == DEVICE.type else value


def to_gpu(value: Any) -> Any:
    """A pretended tensor of a CPU tensor; else ``value``."""
    return PretendedTensor(value) if isinstance(value, Tensor) and type(value) is not PretendedTensor else value


class PretendedDevice(TorchDispatchMode):
    """Counts waits while it is active; pretended tensors exist only inside."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: collections.Counter[str] = collections.Counter()
        """By line: the calls that make the program wait for the GPU."""
        self.streams = Streams(self.record_wait)

    def living_bytes(self) -> int:
        """Memory of all pretended tensors that are alive."""
        storages = {tensor.values.untyped_storage().data_ptr(): tensor.values.untyped_storage() for tensor in _alive}
        return sum(storage.nbytes() for storage in storages.values())

    def record_wait(self, name: str) -> None:
        for frame in reversed(traceback.extract_stack()):
            if "/gs_train/" in frame.filename or "/gsplat/" in frame.filename:
                self.waits[f"{name}: {frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.line}"] += 1
                return
        self.waits[name] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors: list[Tensor] = []
        each_of(lambda value: tensors.append(value) if isinstance(value, Tensor) else None, [*args, kwargs])
        pretended = any(type(tensor) is PretendedTensor for tensor in tensors)
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if name in _COPYING:
            return self._copy(func, name, args, kwargs, target)
        if pretended:
            self._check_devices(name, args, tensors)
            self._find_waits(name, args, kwargs)
        result = func(*each_of(to_cpu, args), **each_of(to_cpu, kwargs))
        if not pretended and target != DEVICE.type:
            return result
        if name.endswith("_") and isinstance(args[0], PretendedTensor) and isinstance(result, Tensor):
            return args[0]
        return each_of(to_gpu, result)

    def _copy(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: str | None) -> Any:
        """Copies between devices, and changes of dtype and layout on one device."""
        source = args[0] if name == "_to_copy" else args[1]
        from_gpu = isinstance(source, PretendedTensor)
        onto_gpu = isinstance(args[0], PretendedTensor) if name == "copy_" else (target or source.device.type) != "cpu"
        non_blocking = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        if name == "copy_" and not onto_gpu:
            self.streams.check_unused(args[0])
        if from_gpu and not onto_gpu:
            self.record_wait("copy to the CPU")
        elif onto_gpu and not from_gpu and source.numel() > 0:
            pinned = self.streams.is_pinned(source)
            if not (non_blocking and (pinned or source.nbytes <= _STAGED_BYTES)):
                self.record_wait("copy to the GPU")
            elif pinned and name == "_to_copy":
                copy = torch.zeros_like(source, dtype=kwargs.get("dtype") or source.dtype)
                self.streams.run(copy, source)
                return PretendedTensor(copy)
        result = func(*each_of(to_cpu, args), **each_of(to_cpu, kwargs))
        if name == "copy_":
            return args[0]
        # On the real devices this is a copy, and both sides may change independently.
        result = result.clone() if from_gpu != onto_gpu else result
        return PretendedTensor(result) if onto_gpu else result

    def _check_devices(self, name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
        """CUDA takes numbers, and indices, from the CPU."""
        strangers = [tensor for tensor in tensors if type(tensor) is not PretendedTensor and tensor.dim() > 0]
        if name in _INDEXING and isinstance(args[0], PretendedTensor):
            if strangers:
                self.record_wait("copy of indices to the GPU")
            strangers = [value for value in strangers if len(args) > 2 and value is args[2]]
        if strangers:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({name} with {[tuple(value.shape) for value in strangers]} on the CPU)"
            )

    def _find_waits(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        by_mask = name in _INDEXING and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        by_counts = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in _WAITING or by_mask or by_counts:
            self.record_wait(name)


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of gsplat's extension for pretended tensors. Like the extension, it refuses other tensors."""

    def call(*args: Any) -> Any:
        for value in args:
            if isinstance(value, Tensor) and not isinstance(value, PretendedTensor):
                raise RuntimeError(f"{function.__name__}: every tensor must be a CUDA tensor")
            if isinstance(value, Tensor) and not value.is_contiguous():
                raise RuntimeError(f"{function.__name__}: every tensor must be contiguous")
        with torch.utils._python_dispatch._disable_current_modes():
            result = function(*each_of(to_cpu, args))
        return each_of(to_gpu, result)

    return call


def install(monkeypatch: pytest.MonkeyPatch) -> PretendedDevice:
    """Make a training with device ``auto`` run on the pretended GPU until the test ends. Enter the returned mode."""
    functions = {function.__name__: _on_device(function) for function in gsplat_double.FUNCTIONS}
    gsplat_double.install(monkeypatch, functions)
    # A CPU build of torch grants some abilities of CUDA to no other device.
    for module in ("torch.optim.adam", "torch.optim.optimizer", "torch.utils._foreach_utils"):
        for name in ("_get_fused_kernels_supported_devices", "_get_foreach_kernels_supported_devices"):
            if hasattr(sys.modules[module], name):
                monkeypatch.setattr(sys.modules[module], name, lambda: ["cpu", "cuda", DEVICE.type])
    monkeypatch.setattr(torch, "Generator", _Generator)
    device, plain = PretendedDevice(), torch.tensor
    device.streams.install(monkeypatch)

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        """``torch.tensor`` on a GPU makes a CPU tensor and copies it, and waits."""
        return plain(data, *args, **kwargs).to(device or "cpu")

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr("gs_train.training.start.select_rasterizer", _select)
    monkeypatch.setattr(checkpoint, "write_content", _writing_values(checkpoint.write_content))
    return device


class _Generator(torch.Generator):
    """A generator of the pretended device draws on the CPU."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls)


def _select(device: str, notify: Callable[[str], None], *, antialiased: bool = False, **kwargs: Any) -> Selection:
    from gs_train.render.select import select_rasterizer

    if device == "cpu":
        return select_rasterizer("cpu", notify, antialiased=antialiased, **kwargs)
    rasterizer = GsplatRasterizer(antialiased=antialiased)
    return Selection(rasterizer=rasterizer, device=DEVICE, reason="pretended", photo_memory=PHOTO_MEMORY)


def _writing_values(write_content: Callable[..., None]) -> Callable[..., None]:
    """Write the values: a checkpoint of a GPU holds tensors that any machine can read."""

    def plain(value: Any) -> Any:
        if isinstance(value, PretendedTensor):
            return value.values.detach().clone()
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value

    return lambda content, file: write_content(plain(content), file)
