"""NpuSlabs on a CPU: what is fetched, rounded and copied back. Streams and pinned memory are stand-ins."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import mindspore as ms
import numpy as np
import pytest

from mindpangu.experts.npu_slabs import NpuSlabs, read_rounded, write_rounded
from tests.experts.conftest import open_store


@pytest.fixture(autouse=True)
def no_streams(monkeypatch):
    """Replaces streams, which a CPU does not have: all work is done when a call returns."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    monkeypatch.setattr(ms.runtime, "Stream", MagicMock())
    monkeypatch.setattr(ms.runtime, "Event", MagicMock())
    monkeypatch.setattr(ms.runtime, "StreamCtx", lambda stream: nullcontext())


@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16])
def test_experts_reach_the_device_rounded_and_gradients_come_back(dtype):
    _, store = open_store()
    slabs = NpuSlabs(store, dtype, device="CPU")
    fetched_LMA = np.zeros_like(store.exists_LMA)
    fetched_LMA[:, 0] = True
    fetched_LMA[0, 2] = True
    slabs.reserve({0, 2})
    num_parameters = sum(int(np.prod(shape)) for shape in store.shapes.values())

    assert slabs.fetch(fetched_LMA) == 9 * num_parameters * 2

    tensors = slabs.lookup((2, 0))
    assert {tensor.dtype for tensor in tensors} == {dtype}
    arrays = [tensor.astype(ms.float32).asnumpy() for tensor in tensors]
    for position, array in enumerate(arrays):
        layer = position // 8
        slot, index = divmod(position % 8, 4)
        domain = (2, 0)[slot]
        expected = list(store.weights[layer][domain].values())[index]
        fetched = fetched_LMA[layer, domain]
        np.testing.assert_allclose(array[fetched], expected[fetched], rtol=2**-8, atol=2**-24)
        assert not array[~fetched].any()
    assert any((array != 0).any() for array in arrays)

    on_host = slabs.to_host(tensors)()
    for copy, array in zip(on_host, arrays, strict=True):
        np.testing.assert_array_equal(copy.astype(np.float32), array)

    slabs.reserve({3, 2})  # domain 0 loses its buffers to domain 3, domain 2 keeps its own
    again = slabs.lookup((2, 3))
    assert [a is b for a, b in zip(again[:4], tensors[:4], strict=True)] == [True] * 4
    assert [a is b for a, b in zip(again[4:8], tensors[4:8], strict=True)] == [True] * 4


def test_rounding_to_bfloat16_is_to_nearest_even():
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            rng.standard_normal(1000, dtype=np.float32) * np.float32(10.0) ** rng.integers(-30, 30, 1000),
            np.array([1 + 2**-8, 1 + 3 * 2**-8, np.inf, -np.inf, np.nan, 3.4e38, 0.0, -0.0], np.float32),
        ]
    ).astype(np.float32)
    tensor = ms.mint.empty((len(values),), dtype=ms.bfloat16, device="CPU")

    write_rounded(tensor, slice(0, len(values)), values)
    rounded = read_rounded(tensor)

    expected = ms.Tensor(values).astype(ms.bfloat16).astype(ms.float32).asnumpy()
    np.testing.assert_array_equal(rounded, expected)
    assert rounded[1000:1002].tolist() == [1.0, 1 + 2**-6]


class Device:
    """A stand-in for an NPU: tensors are arrays, and streams only record what is asked of them.

    Attributes:
        done: what happened, in order: (operation, name of the stream, …).
        memory: (device, whether it is pinned) of every tensor that was allocated.
    """

    def __init__(self, monkeypatch):
        self.done = []
        self.memory = []
        self.stream = "default"
        monkeypatch.setattr(ms.runtime, "Stream", self.open_stream)
        monkeypatch.setattr(ms.runtime, "Event", self.open_event)
        monkeypatch.setattr(ms.runtime, "StreamCtx", self.using)
        monkeypatch.setattr(ms.mint, "empty", self.allocate)

    def open_stream(self):
        return SimpleNamespace(name="own", synchronize=lambda: self.done.append(("synchronize", "own")))

    def open_event(self):
        return SimpleNamespace(
            record=lambda: self.done.append(("record", self.stream)),
            wait=lambda stream: self.done.append(("wait", stream.name)),
        )

    @contextmanager
    def using(self, stream):
        self.stream = stream.name
        yield
        self.stream = "default"

    def allocate(self, shape, dtype, device, pin_memory):
        assert dtype == ms.float16
        self.memory.append((device, pin_memory))
        return Array(self, np.full(shape, np.nan, np.float16))


class Array:
    """A float16 tensor of a `Device`."""

    dtype = ms.float16

    def __init__(self, device, values):
        self.device = device
        self.values = values
        self.shape = values.shape

    def __getitem__(self, rows):
        return Array(self.device, self.values[rows])

    def data_ptr(self):
        return self.values.ctypes.data

    def copy_(self, source, non_blocking=False):
        if isinstance(source, Array):
            self.device.done.append(("copy", self.device.stream, non_blocking))
            self.values[...] = source.values
        else:  # the zeros of a new slab
            self.values[...] = source.asnumpy()
        return self


@pytest.fixture
def npu(monkeypatch):
    return Device(monkeypatch)


def test_only_the_rows_of_fetched_experts_are_copied_on_a_stream_of_their_own(npu):
    """`fetch` returns once the copies have ended."""
    _, store = open_store()
    slabs = NpuSlabs(store, ms.float16)
    slabs.reserve({0, 2})
    fetched_LMA = np.zeros_like(store.exists_LMA)
    fetched_LMA[1, 0, [0, 2]] = True  # two runs of rows
    fetched_LMA[1, 2] = True  # a whole slab

    moved = slabs.fetch(fetched_LMA)

    num_tensors = len(store.tensors)
    assert npu.done == [("copy", "own", True)] * (3 * num_tensors) + [("synchronize", "own")]
    assert moved == 2 * 5 * sum(int(np.prod(shape)) for shape in store.shapes.values())
    found = slabs.lookup((0, 2))
    for tensor, weights, chosen_A in zip(
        found, store.lookup((0, 2)), fetched_LMA[:, [0, 2]].repeat(num_tensors, 1).reshape(-1, 3), strict=True
    ):
        np.testing.assert_array_equal(tensor.values[chosen_A], weights[chosen_A].astype(np.float16))
        assert not tensor.values[~chosen_A].any()


def test_host_buffers_are_pinned_and_used_again(npu):
    _, store = open_store()
    slabs = NpuSlabs(store, ms.float16)
    slabs.reserve({0})
    on_device = len(npu.memory)
    experts_LMA = np.zeros_like(store.exists_LMA)
    experts_LMA[:, 0] = True

    for _ in range(2):
        slabs.fetch(experts_LMA)

    assert set(npu.memory[:on_device]) == {("Ascend", False)}
    assert npu.memory[on_device:] == [("CPU", True)] * 2 * len(store.tensors)  # one slab for each layer


def test_gradients_come_back_after_the_kernels_that_compute_them(npu):
    """The copies wait for them in the stream, and the host waits for the copies."""
    _, store = open_store()
    slabs = NpuSlabs(store, ms.float16)
    gradients = [
        Array(npu, np.full((store.group_size, *shape), position, np.float16))
        for position, shape in enumerate([*store.shapes.values()] * 2)
    ]

    copy = slabs.to_host(gradients)
    assert npu.done == [("record", "default")]
    on_host = copy()

    assert npu.done[1:] == [("wait", "own"), *[("copy", "own", True)] * len(gradients), ("synchronize", "own")]
    for array, gradient in zip(on_host, gradients, strict=True):
        np.testing.assert_array_equal(array, gradient.values)
