"""The mesh and the number of started processes must agree."""

import re

import pytest

from mindpangu.config import load_config
from mindpangu.errors import ConfigError, ParallelError
from mindpangu.parallel.processes import Processes, start_processes


def test_a_single_process_has_nothing_to_exchange(monkeypatch):
    monkeypatch.delenv("RANK_SIZE", raising=False)

    processes = start_processes(load_config(None))

    assert processes.mesh.size == 1
    assert processes.is_first
    assert processes.exchange is None


def test_a_number_of_processes_that_differs_from_the_mesh_is_refused(monkeypatch):
    monkeypatch.setenv("RANK_SIZE", "4")
    config = load_config(None, {"parallelism.data_parallel": "2", "parallelism.tensor_parallel": "4"})

    with pytest.raises(ParallelError, match=r"asks for 8 processes .*, but 4 were started; bash .*cluster.sh 8"):
        start_processes(config)


@pytest.mark.parametrize("text", ["", "two", "-1", "1.0"])
def test_a_number_of_processes_that_msrun_did_not_set_is_named(monkeypatch, text):
    monkeypatch.setenv("RANK_SIZE", text)

    with pytest.raises(ParallelError, match=f"RANK_SIZE is '{text}'"):
        start_processes(load_config(None))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_parallel": "4", "expert_parallel": "3"}, "expert_parallel is 3, which does not divide"),
        ({"tensor_parallel": "3"}, "tensor_parallel is 3; it must divide model.num_heads 4"),
    ],
)
def test_axes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        load_config(None, {f"parallelism.{key}": value for key, value in changes.items()})


def test_every_call_draws_a_new_name():
    names = {Processes.alone().draw_shared_name() for _ in range(100)}

    assert len(names) == 100
    assert all(re.fullmatch("job-[0-9a-f]{16}", name) for name in names)
