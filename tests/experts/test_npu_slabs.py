"""NpuSlabs on a CPU: what is fetched, rounded and copied back. Streams and pinning are not tested here."""

from contextlib import nullcontext
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
