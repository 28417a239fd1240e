"""Opens a run whose graphs are compiled with one backend of the operators."""

import importlib

import pytest

from ascend_ops import backends, native
from mindpangu.config import load_config
from mindpangu.data import Loader
from mindpangu.train.run import open_run, set_device
from mindpangu.train.step import TrainStep

IN_THE_GRAPH = sorted(set(backends.operators()) - {"expert_adam", "grouped_all_to_all"})  # of one process


@pytest.fixture
def opened(monkeypatch):
    """opened(overrides, backend) returns (train step, model with random weights, loader); skips without a compiler."""

    def open_with(overrides, backend):
        for operator in IN_THE_GRAPH:
            try:
                form = backend if backends.has_form(operator, backend) else "cpu"
                module = importlib.import_module(f"ascend_ops.{operator}.{form}")
            except native.CompileError as error:
                pytest.skip(f"no C++ compiler: {error}")
            monkeypatch.setattr(importlib.import_module(f"ascend_ops.{operator}"), "implementation", module)
        config = load_config(None, overrides)
        set_device(config)
        run = open_run(config)
        run.model.store.initialize()
        return TrainStep(run.model), run.model, Loader(run.shards, run.model.domains, config)

    return open_with
