"""The folder of checkpoints: the newest is that of the highest step, however many digits it has."""

import pytest

from mindpangu.checkpoint.directory import finish_publishing, iteration_folder, latest_iteration, list_iterations, prune
from mindpangu.checkpoint.manifest import MANIFEST

STEPS = [7, 99_999_999, 100_000_000, 1_000_000_000]


@pytest.fixture
def parent(tmp_path):
    for step in (STEPS[2], STEPS[0], STEPS[3], STEPS[1]):
        iteration_folder(tmp_path, step).mkdir()
        (iteration_folder(tmp_path, step) / MANIFEST).write_text("{}")
    return tmp_path


def test_checkpoints_are_listed_by_step(parent):
    assert list_iterations(parent) == [iteration_folder(parent, step) for step in STEPS]
    assert latest_iteration(parent) == parent / "iteration_1000000000"
    assert iteration_folder(parent, 7).name == "iteration_00000007"


@pytest.mark.parametrize("keep", [1, 2, 4, 9])
def test_the_newest_are_kept(parent, keep):
    removed = prune(parent, keep)

    assert list_iterations(parent) == [iteration_folder(parent, step) for step in STEPS[-keep:]]
    assert removed == [iteration_folder(parent, step) for step in STEPS[:-keep]]


def test_the_pointer_names_the_newest_step(parent):
    finish_publishing(parent, parent / "latest", keep_last=2)

    assert (parent / "latest").read_text() == "1000000000\n"
    assert len(list_iterations(parent)) == 2
