"""A run: what its caller can add to the training, and whose weights it loads."""

from types import SimpleNamespace

import pytest

from mindpangu.checkpoint import CheckpointWriter
from mindpangu.checkpoint.directory import remove
from mindpangu.config import load_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import CheckpointError
from mindpangu.train.callbacks import Callback
from mindpangu.train.run import _load_weights, _save_config, open_run, set_device, train


class Recorder(Callback):
    """Keeps the hooks that training calls, in order."""

    def __init__(self):
        self.calls = []

    def on_start(self, first_step, last_step):
        self.calls.append(("start", first_step, last_step))

    def on_step(self, record):
        self.calls.append(("step", record.step, record.loss))

    def on_end(self):
        self.calls.append(("end",))


def test_a_callers_callback_sees_every_step(tiny_run):
    overrides, _ = tiny_run
    config = load_config(None, overrides)
    set_device(config)
    run = open_run(config)
    recorder = Recorder()

    finished = train(run, log=lambda text: None, callbacks=[recorder])

    assert finished == 6
    steps = [("step", step) for step in range(1, 7)]
    assert [call[:2] for call in recorder.calls] == [("start", 1), *steps, ("end",)]
    assert all(0 < loss < 10 for _, _, loss in recorder.calls[1:-1])


class Ranks:
    """The ranks of a job as this one sees them: what the first rank's newest step is, and on how many further attempts
    another rank fails to load."""

    def __init__(self, first_rank_step=None, other_failures=0):
        self.first_rank_step = first_rank_step
        self.other_failures = other_failures

    def broadcast(self, number):
        return self.first_rank_step or number

    def any_rank(self, flag):
        self.other_failures -= 1
        return flag or self.other_failures >= 0


@pytest.fixture
def saved(tmp_path):
    """A run folder with checkpoints of steps 1 to 3."""
    for step in (1, 2, 3):
        with CheckpointWriter(tmp_path / "checkpoint", step) as writer:
            writer.write("state.json", b"content")
    return tmp_path


def load(monkeypatch, path, processes, on_load=lambda reader: None):
    steps = []

    def load_weights(reader, model):
        steps.append(reader.step)
        on_load(reader)

    monkeypatch.setattr("mindpangu.train.run.load_weights", load_weights)
    reader = _load_weights(path, SimpleNamespace(processes=processes))
    return reader.step, steps


def test_all_ranks_load_the_checkpoint_of_the_first_rank(saved, monkeypatch):
    """A checkpoint may be saved between the moments at which two ranks look for the newest."""
    assert load(monkeypatch, saved, Ranks(first_rank_step=2)) == (2, [2])


def test_all_ranks_load_again_if_one_of_them_found_it_removed(saved, monkeypatch):
    assert load(monkeypatch, saved, Ranks(other_failures=2)) == (3, [3, 3, 3])


def test_weights_that_are_pruned_while_they_are_loaded_are_loaded_from_the_newest(saved, monkeypatch):
    def prune(reader):
        if reader.step > 1:
            remove(reader.folder)
            raise CheckpointError("state.json cannot be read")

    assert load(monkeypatch, saved, Ranks(), prune) == (1, [3, 2, 1])


def test_weights_that_are_always_pruned_end_in_one_message(saved, monkeypatch):
    with pytest.raises(CheckpointError, match="removed faster than they can be loaded; load a copy of one"):
        load(monkeypatch, saved, Ranks(other_failures=100))


def test_weights_of_another_model_are_refused_at_once(saved, monkeypatch):
    steps = []

    def refuse(reader):
        steps.append(reader.step)
        raise CheckpointError("another model")

    with pytest.raises(CheckpointError, match="another model"):
        load(monkeypatch, saved, Ranks(), refuse)
    assert steps == [3]


def test_a_configuration_that_the_user_keeps_in_the_run_folder_is_not_lost(tmp_path):
    folder = RunFolder(tmp_path)
    written = "# mine\ntraining: {seed: 5}\n"
    folder.config.write_text(written)
    config = load_config(folder.config)
    messages = []

    for _ in range(2):  # what a training has written is replaced
        _save_config(folder, config, messages.append)

    assert load_config(folder.config) == config
    assert (tmp_path / "config.yaml.set_aside-1").read_text() == written
    assert len(list(tmp_path.iterdir())) == 2
    assert len(messages) == 1
    assert "kept as config.yaml.set_aside-1" in messages[0]


def test_a_link_in_place_of_the_configuration_is_set_aside(tmp_path):
    (tmp_path / "precious").write_text("former")
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.config.symlink_to(tmp_path / "precious")

    _save_config(folder, load_config(), lambda text: None)

    assert folder.config.is_file()
    assert not folder.config.is_symlink()
    assert (tmp_path / "precious").read_text() == "former"
