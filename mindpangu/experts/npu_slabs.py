"""The experts in an NPU's memory: `StagedSlabs` with pinned host buffers and copies on a separate stream.

Unverified on hardware. Tests run it on a CPU without pinned memory or streams. There MindSpore loses copies into part
of a tensor, so the tests fetch whole slabs.

The host rounds to the device's number format before the copy, which halves the bytes that cross. All copies of a call
are queued and awaited once, in the host thread, while the device computes on its default stream.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindpangu.experts.store import ExpertStore, runs

TensorSlab = list[Tensor]
"""The tensors of all experts of one layer and domain, in the order of `ExpertStore.tensors`."""


class NpuSlabs:
    """Slabs in device memory; see `StagedSlabs` for the methods.

    Args:
        dtype: mindspore.float16 or mindspore.bfloat16: the number format that the device computes in.
        device: "Ascend"; "CPU" in tests.
    """

    moves = True

    def __init__(self, store: ExpertStore, dtype: Any, device: str = "Ascend"):
        self._store = store
        self._dtype = dtype
        self._device = device
        self._slabs: dict[int, list[TensorSlab]] = {}  # domain id → one slab per layer
        self._free: list[list[TensorSlab]] = []
        self._pinned: dict[int, TensorSlab] = {}  # index of a slab within one call → its host buffers
        self._stream = ms.runtime.Stream()

    def reserve(self, domains: set[int]) -> None:
        """Reserves buffers for these domains and releases those of all others."""
        for domain in [domain for domain in self._slabs if domain not in domains]:
            self._free.append(self._slabs.pop(domain))
        for domain in sorted(domains - self._slabs.keys()):
            layers = range(self._store.num_layers)
            self._slabs[domain] = self._free.pop() if self._free else [self._new_slab() for _ in layers]

    def fetch(self, experts_LMA: np.ndarray) -> int:
        """Copies experts (bool [L, M, A]) of reserved domains to the device; returns the number of bytes."""
        moved = 0
        with ms.runtime.StreamCtx(self._stream):
            for slab_index, (layer, domain) in enumerate(np.argwhere(experts_LMA.any(-1)).tolist()):
                weights = self._store.weights[layer][domain]
                for name, pinned, slab in zip(
                    self._store.tensors, self._host_buffers(slab_index), self._slabs[domain][layer], strict=True
                ):
                    for rows in runs(experts_LMA[layer, domain]):
                        write_rounded(pinned, rows, weights[name][rows])
                        moved += 2 * weights[name][rows].size
                        if rows == slice(0, self._store.group_size):
                            slab.copy_(pinned, non_blocking=True)
                        else:
                            slab[rows].copy_(pinned[rows], non_blocking=True)
        self._stream.synchronize()
        return moved

    def lookup(self, domain_of_slot: Sequence[int]) -> list[Tensor]:
        """Returns the slabs on the device in the order of `ExpertStore.lookup`."""
        return [
            tensor
            for layer in range(self._store.num_layers)
            for domain in domain_of_slot
            for tensor in self._slabs[domain][layer]
        ]

    def to_host(self, gradients: Sequence[Tensor]) -> Callable[[], list[np.ndarray]]:
        """Returns a function that copies the gradients to the host as float16 or float32; the host thread calls it."""
        computed = ms.runtime.Event()
        computed.record()  # on the device's default stream, after the kernels that compute the gradients

        def copy_to_host() -> list[np.ndarray]:
            computed.wait(self._stream)
            size = len(self._store.tensors)
            buffers = [self._host_buffers(i // size)[i % size] for i in range(len(gradients))]
            with ms.runtime.StreamCtx(self._stream):
                for pinned, gradient in zip(buffers, gradients, strict=True):
                    pinned.copy_(gradient, non_blocking=True)
            self._stream.synchronize()
            return [read_rounded(pinned) for pinned in buffers]

        return copy_to_host

    def _host_buffers(self, slab_index: int) -> TensorSlab:
        if slab_index not in self._pinned:
            self._pinned[slab_index] = self._empty_slab("CPU", pin_memory=self._device == "Ascend")
        return self._pinned[slab_index]

    def _new_slab(self) -> TensorSlab:
        """Allocates a slab of zeros: rows that are never fetched must be finite."""
        return [tensor.copy_(ops.zeros(tensor.shape, self._dtype)) for tensor in self._empty_slab(self._device)]

    def _empty_slab(self, device: str, pin_memory: bool = False) -> TensorSlab:
        shapes = [(self._store.group_size, *shape) for shape in self._store.shapes.values()]
        return [ms.mint.empty(shape, dtype=self._dtype, device=device, pin_memory=pin_memory) for shape in shapes]


def write_rounded(pinned: Tensor, rows: slice, values: np.ndarray) -> None:
    """Rounds float32 values (to nearest, ties to even) and writes them to rows of a float16 or bfloat16 host tensor."""
    if pinned.dtype == ms.float16:
        with np.errstate(over="ignore"):
            np.copyto(_memory(pinned, np.float16)[rows], values, casting="same_kind")
        return
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    # rounding must not turn a NaN into an infinity by a carry
    np.copyto(_memory(pinned, np.uint16)[rows], np.where(np.isnan(values), 0x7FC0, rounded), casting="unsafe")


def read_rounded(pinned: Tensor) -> np.ndarray:
    """Returns the numbers of a host tensor: a float16 view, or a float32 copy of bfloat16."""
    if pinned.dtype == ms.float16:
        return _memory(pinned, np.float16)
    return (_memory(pinned, np.uint16).astype(np.uint32) << 16).view(np.float32)


def _memory(tensor: Tensor, dtype: type) -> np.ndarray:
    """Views the memory of a host tensor as an array (NumPy has no bfloat16)."""
    count = int(np.prod(tensor.shape))
    address = ctypes.c_uint16 * count
    return np.frombuffer(memoryview(address.from_address(tensor.data_ptr())), dtype, count).reshape(tensor.shape)
