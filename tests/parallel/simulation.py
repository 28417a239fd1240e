"""Simulated ranks: runs what every rank of a group does, in one process and one thread, without msrun.

A rank runs until it needs values that another rank has not contributed to a collective yet. It is then put off, and
starts anew once they are there. So the simulated function must not have side effects, and runs in PyNative mode.
"""

from collections import Counter
from types import SimpleNamespace

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops


class _NotYetContributed(Exception):
    pass


class SimulatedRanks:
    """Ranks of which one runs at a time.

    Attributes:
        groups: name of a group → its ranks.
        rank: the rank that runs.
    """

    def __init__(self, groups):
        self.groups = groups
        self.rank = 0
        self._num_calls = Counter()
        self._contributions = {}
        self._progress = False

    def run(self, function):
        """Returns the results of function(rank) for every rank."""
        ranks = sorted({rank for members in self.groups.values() for rank in members})
        results = {}
        while len(results) < len(ranks):
            self._progress = False
            for self.rank in [rank for rank in ranks if rank not in results]:
                self._num_calls.clear()
                try:
                    results[self.rank] = function(self.rank)
                    self._progress = True
                except _NotYetContributed:
                    pass
            assert self._progress, "the ranks wait for each other for ever: their collectives differ"
        return [results[rank] for rank in ranks]

    def collective(self, group, kind, contribution):
        """Returns what the ranks of a group contribute to this call, in their order, and this rank's index."""
        members = self.groups[group]
        call = self._contributions.setdefault((group, self._num_calls[group]), {})
        self._num_calls[group] += 1
        if self.rank not in call:
            call[self.rank] = (kind, contribution)
            self._progress = True
        if len(call) < len(members):
            raise _NotYetContributed
        assert {kind for kind, _ in call.values()} == {kind}, "the ranks of a group call different collectives"
        return [call[rank][1] for rank in members], members.index(self.rank)

    def install(self, monkeypatch, device_target="CPU"):
        """Lets `ops`' collectives exchange values among the simulated ranks; `jit` compiles nothing."""

        def all_reduce(arrays, index):
            return sum(arrays[1:], arrays[0])

        def all_gather(arrays, index):
            return np.concatenate(arrays)

        def reduce_scatter(arrays, index):
            return np.split(all_reduce(arrays, index), len(arrays))[index]

        def primitive(compute):
            def build(group):
                def call(x):
                    arrays, index = self.collective(group, compute.__name__, x.asnumpy())
                    return Tensor(compute(arrays, index))

                return call

            return build

        monkeypatch.setattr(ops, "AllReduce", primitive(all_reduce))
        monkeypatch.setattr(ops, "AllGather", primitive(all_gather))
        monkeypatch.setattr(ops, "ReduceScatter", primitive(reduce_scatter))
        monkeypatch.setattr(ms, "get_context", lambda name: device_target)
        monkeypatch.setattr(ms, "jit", lambda function: function)
        return self


def exchange_group(name, size):
    """Returns what a token dispatcher uses of an exchange group."""
    return SimpleNamespace(name=name, size=size)
