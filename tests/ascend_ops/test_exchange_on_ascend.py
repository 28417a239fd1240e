"""The exchange on Ascend, as far as a CPU can test it: the self-test of a group, its consequences and messages."""

import logging

import numpy as np
import pytest
from mindspore import Tensor

from ascend_ops.grouped_all_to_all import ascend, composed


def arriving(rank, size):
    """Returns the rows that must arrive at `rank` in a self-test: rank r sends it the value r·R + rank + 1."""
    values = np.repeat(np.arange(size) * size + rank + 1.0, rank + 1)
    return np.concatenate([values, [0.0]])[:, None] * np.ones((1, 16))


def exchange_that_returns(rows):
    def exchange(rows_QH, send_counts_R, receive_counts_R, zeros_CH, order):
        assert rows_QH.shape[0] == send_counts_R.asnumpy().sum()
        assert zeros_CH.shape == rows.shape
        return Tensor(rows.astype(np.float32)), order

    return exchange


@pytest.mark.parametrize(("rank", "size"), [(0, 2), (1, 2), (5, 8)])
def test_an_exchange_that_works_passes(rank, size):
    assert ascend.self_test(exchange_that_returns(arriving(rank, size)), rank, size) is None


def test_zeros_are_noticed():
    wrong = np.zeros_like(arriving(1, 2))
    assert ascend.self_test(exchange_that_returns(wrong), 1, 2) == "returns zeros"


def test_rows_of_another_rank_are_noticed():
    assert ascend.self_test(exchange_that_returns(arriving(1, 2)[::-1].copy()), 1, 2) == "returns wrong rows"


def test_an_error_is_named():
    def exchange(*_):
        raise RuntimeError("HcclAlltoAllV failed\nmore")

    assert ascend.self_test(exchange, 1, 2) == "fails (HcclAlltoAllV failed)"


def test_a_group_that_fails_the_test_gathers_with_a_warning(monkeypatch, caplog):
    created = []
    monkeypatch.setattr(ascend.ms, "get_context", lambda name: "Ascend")
    monkeypatch.setattr(ascend, "AllToAll", lambda name: exchange_that_returns(np.zeros_like(arriving(1, 2))))
    monkeypatch.setattr(
        composed, "Exchange", lambda *arguments, **named: created.append((arguments, named)) or "gathers"
    )

    with caplog.at_level(logging.WARNING):
        assert ascend.exchange_of_group("experts", 1, 2) == "gathers"

    assert created == [(("experts", 1, 2), {"all_gather": True})]
    assert "group experts: AlltoAllV returns zeros" in caplog.text
    assert "group experts: exchanging rows by AllGather, which moves 2 times as much" in caplog.text


def test_whole_nodes_exchange_where_the_group_itself_cannot(monkeypatch, caplog):
    """On 910A, a group of one card per node breaks HCCL's rule; all cards of these nodes keep it."""
    works = exchange_that_returns(arriving(1, 2))
    reports = []
    fails = exchange_that_returns(np.zeros_like(arriving(1, 2)))
    monkeypatch.setattr(ascend.ms, "get_context", lambda name: "Ascend")
    monkeypatch.setattr(ascend, "AllToAll", lambda name, wide=None: works if wide else fails)
    around = "experts_nodes", [0, -1, 1, -1]

    with caplog.at_level(logging.WARNING):
        exchange = ascend.exchange_of_group(
            "experts", 1, 2, around, agree=lambda failed: reports.append(failed) or failed
        )

    assert exchange is works
    assert reports == [True, False]
    assert "group experts: AlltoAllV returns zeros" in caplog.text
    assert ascend.exchange_of_group("experts", 1, 2, around, whole_nodes=True) is works


def test_an_exchange_that_fails_on_another_rank_fails_on_all(monkeypatch):
    monkeypatch.setattr(ascend.ms, "get_context", lambda name: "Ascend")
    monkeypatch.setattr(ascend, "AllToAll", lambda name: exchange_that_returns(arriving(1, 2)))

    monkeypatch.setattr(composed, "Exchange", lambda *arguments, **named: "gathers")

    assert ascend.exchange_of_group("experts", 1, 2, agree=lambda failed: True) == "gathers"


def test_counts_of_ranks_that_exchange_nothing_are_zero():
    exchange = ascend.AllToAll("nodes", [-1, 0, -1, 1, 2, -1])

    counts_R = Tensor(np.array([5, 0, 7], np.int32))

    assert exchange.widened(counts_R).asnumpy().tolist() == [0, 5, 0, 0, 7, 0]


def test_a_group_that_passes_the_test_uses_all_to_all(monkeypatch, caplog):
    works = exchange_that_returns(arriving(1, 2))
    monkeypatch.setattr(ascend.ms, "get_context", lambda name: "Ascend")

    monkeypatch.setattr(ascend, "AllToAll", lambda name: works)

    assert ascend.exchange_of_group("experts", 1, 2) is works
    assert not caplog.records


def test_a_group_of_one_exchanges_with_itself():
    assert isinstance(ascend.exchange_of_group("alone", 0, 1), composed.Exchange)
