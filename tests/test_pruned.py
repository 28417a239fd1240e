"""Work that reads checkpoints is done again if one of them is removed meanwhile."""

import pytest

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, latest_iteration
from mindpangu.checkpoint.directory import remove
from mindpangu.errors import CheckpointError
from mindpangu.pruned import MAX_TRIES, forget_opened_checkpoints, retry_if_pruned


def save(run, step):
    with CheckpointWriter(run / "checkpoint", step) as writer:
        writer.write("state.json", str(step).encode())
    return writer.folder


def replace_newest(run):
    """Saves the checkpoint of the next step and removes the one before it, like a training that keeps one."""
    newest = latest_iteration(run / "checkpoint")
    save(run, int(newest.name[-8:]) + 1)
    remove(newest)


@pytest.fixture
def run(tmp_path):
    save(tmp_path / "run", 1)
    return tmp_path / "run"


def test_the_newest_is_read_again_when_the_one_before_it_is_gone(run):
    messages = []

    def work():
        reader = CheckpointReader(run)
        if reader.step < 3:
            replace_newest(run)
        return reader.read("state.json")

    content = retry_if_pruned(work, messages.append)

    assert content == b"3"
    assert [message.rsplit(" was removed", 1)[0][-1] for message in messages] == ["1", "2"]


def test_a_training_that_prunes_faster_than_it_is_read_is_named(run):
    tries = []

    def work():
        tries.append(1)
        reader = CheckpointReader(run)
        replace_newest(run)
        reader.read("state.json")

    with pytest.raises(
        CheckpointError, match=r"iteration_0000000\d was removed .* faster than .* checkpoint\.keep_last"
    ):
        retry_if_pruned(work, lambda text: None)
    assert len(tries) == MAX_TRIES


def test_a_checkpoint_that_the_user_named_is_not_replaced(run):
    named = CheckpointReader(run).folder

    def work():
        reader = CheckpointReader(named)
        replace_newest(run)
        reader.read("state.json")

    with pytest.raises(CheckpointError, match=r"iteration_00000001 was removed while .*; .* read a copy"):
        retry_if_pruned(work)


def test_a_checkpoint_that_was_replaced_under_its_name_is_read_again(run):
    tries = []

    def work():
        tries.append(1)
        reader = CheckpointReader(run)
        if len(tries) == 1:
            remove(reader.folder)
            with CheckpointWriter(run / "checkpoint", 1) as writer:
                writer.write("state.json", b"other")
        return reader.read("state.json")

    assert retry_if_pruned(work, lambda text: None) == b"other"


@pytest.mark.parametrize("error", [CheckpointError("damaged"), OSError(28, "No space left on device"), KeyError("bug")])
def test_other_errors_pass(run, error):
    tries = []

    def work():
        tries.append(CheckpointReader(run))
        raise error

    with pytest.raises(type(error)) as raised:
        retry_if_pruned(work)
    assert raised.value is error
    assert len(tries) == 1


def test_an_error_after_everything_was_read_is_not_blamed_on_pruning(run):
    """A training that loaded its weights long ago, for example."""

    def work():
        CheckpointReader(run)
        forget_opened_checkpoints()
        replace_newest(run)
        raise CheckpointError("the disk is full")

    with pytest.raises(CheckpointError, match=r"^the disk is full$"):
        retry_if_pruned(work)


def test_only_the_inner_work_is_repeated(run):
    outer = []

    def inner():
        reader = CheckpointReader(run)
        if reader.step == 1:
            replace_newest(run)
        return reader.read("state.json")

    def work():
        outer.append(1)
        return retry_if_pruned(inner, lambda text: None)

    assert retry_if_pruned(work) == b"2"
    assert len(outer) == 1


def test_the_message_for_a_missing_checkpoint_names_the_newest(run):
    with pytest.raises(CheckpointError, match=r"no .*iteration_00000009: it was pruned or never saved\. .*_00000001$"):
        CheckpointReader(run / "checkpoint" / "iteration_00000009")
