"""A run: what its caller can add to the training, and whose weights it loads."""

from types import SimpleNamespace

import numpy as np
import pytest

from mindpangu.checkpoint import CheckpointWriter
from mindpangu.checkpoint.directory import remove
from mindpangu.config import load_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import CheckpointError, ConfigError, TrainingError
from mindpangu.parallel.mesh import Mesh
from mindpangu.pruned import retry_if_pruned
from mindpangu.train import run as module
from mindpangu.train.callbacks import Callback
from mindpangu.train.run import Run, TrainingSchedule, _load_weights, _save_config, open_run, set_device, train


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
    """Not even the whole work is repeated, although checkpoints that it opened are gone."""
    attempts = []

    def work():
        attempts.append(1)
        load(monkeypatch, saved, Ranks(other_failures=100), lambda reader: reader.step == 3 and remove(reader.folder))

    with pytest.raises(CheckpointError, match="removed faster than they can be loaded; load a copy of one"):
        retry_if_pruned(work)
    assert len(attempts) == 1


def test_weights_of_another_model_are_refused_at_once(saved, monkeypatch):
    steps = []

    def refuse(reader):
        steps.append(reader.step)
        raise CheckpointError("another model")

    with pytest.raises(CheckpointError, match="another model"):
        load(monkeypatch, saved, Ranks(), refuse)
    assert steps == [3]


class Job:
    """A job whose model is empty and whose steps are not taken; records what a training does before and after them."""

    def __init__(self, monkeypatch, folder, rank=0, size=1, **overrides):
        overrides = {key.replace("__", "."): value for key, value in overrides.items()}
        defaults = {"training.output_dir": str(folder), "training.run_name": "run", "training.steps": "9"}
        defaults["lr_scheduler.warmup_steps"] = "0"
        self.config = load_config(None, defaults | overrides)
        self.folder = RunFolder.from_config(self.config)
        self.done = []
        self.messages = []
        self.loaded_states = []
        self.error = None
        self.processes = SimpleNamespace(
            is_first=rank == 0,
            rank=rank,
            mesh=Mesh(data=size),
            barrier=lambda: self.done.append("barrier"),
            report_status=lambda *words, doing=None: self.done.append(doing or words[-1]),
            draw_shared_name=lambda: "job-1",
            any_rank=lambda flag: flag,
            broadcast=lambda number: number,
        )
        self.store = SimpleNamespace(
            step_counts=np.zeros((1, 1, 1), int),
            initialize=lambda: self.done.append("initial weights"),
            describe=lambda: "2 layers",
        )
        model = SimpleNamespace(
            config=self.config,
            processes=self.processes,
            store=self.store,
            table=None,
            tokenizers={},
            domains=[],
            planner="the planner",
        )
        self.run = Run(self.config, self.folder, SimpleNamespace(digest="of the data"), model)
        self.schedule = TrainingSchedule(SimpleNamespace(load_state=self.loaded_states.append), lambda step: step / 10)
        for name, replacement in {
            "TrainStep": lambda model: SimpleNamespace(
                processes=self.processes,
                config=self.config,
                guard=SimpleNamespace(state=lambda: {"loss": [6.5], "global_norm": []}),
                prepare=lambda: self.done.append("prepare"),
            ),
            "StepStream": lambda *arguments: SimpleNamespace(
                arguments=arguments, close=lambda: self.done.append("close")
            ),
            "run_steps": self._run_steps,
            "forget_opened_checkpoints": lambda: self.done.append("all is read"),
            "load_weights": lambda reader, model: self.done.append(f"weights of step {reader.step}"),
        }.items():
            monkeypatch.setattr(module, name, replacement)

    def _run_steps(self, train_step, stream, first_step, callbacks, checkpointer, rate):
        self.done.append("steps")
        self.stream = stream
        self.first_step = first_step
        self.callbacks = callbacks
        self.rate = rate
        if self.error:
            raise self.error
        return 9

    def save(self, step):
        """Saves a checkpoint of the run, as far as `train` looks into it."""
        with CheckpointWriter(self.folder.checkpoints, step) as writer:
            writer.write("state.json", b"content")

    def train(self, **options):
        return train(self.run, log=self.messages.append, schedule=self.schedule, **options)


def test_a_new_training_begins_with_initial_weights_and_its_configuration_is_saved(tmp_path, monkeypatch):
    job = Job(monkeypatch, tmp_path)
    own = Callback()

    assert job.train(callbacks=[own]) == 9

    assert job.done == [
        "barrier",
        "initial weights",
        "preparing the first step",
        "prepare",
        "all is read",
        "steps",
        "close",
    ]
    assert job.first_step == 1
    assert job.rate(7) == 0.7
    assert job.stream.arguments == (job.schedule.loader, "the planner")
    metrics, progress, last = job.callbacks
    assert (metrics.path, last) == (job.folder.metrics, own)
    assert (progress.every, progress.quiet, progress.log_path) == (
        job.config.monitor.log_steps,
        False,
        job.folder.root / "log" / "rank_0" / "info.log",
    )
    assert load_config(job.folder.config) == job.config
    operators, experts = job.messages
    assert operators.startswith("operators: ")
    assert experts == f"experts: 2 layers, mode {job.config.experts.mode}"


def test_another_rank_waits_for_the_first_and_is_quiet(tmp_path, monkeypatch):
    job = Job(monkeypatch, tmp_path, rank=1, size=2)

    assert job.train() == 9

    assert job.done[:2] == ["barrier", "initial weights"]
    (progress,) = job.callbacks
    assert progress.quiet
    assert progress.log_path == job.folder.root / "log" / "rank_1" / "info.log"
    assert job.messages == []
    assert not job.folder.config.exists()


def test_the_first_of_several_ranks_says_how_they_are_arranged(tmp_path, monkeypatch):
    job = Job(monkeypatch, tmp_path, size=2)

    job.train()

    assert job.messages[1:] == [
        "processes: 2 = data 2 × tensor 1",
        f"experts (this rank): 2 layers, mode {job.config.experts.mode}",
    ]


def test_a_dense_model_has_no_experts_to_describe(tmp_path, monkeypatch):
    job = Job(monkeypatch, tmp_path, model__rre_layers="0")

    job.train()

    assert [message.split(":")[0] for message in job.messages] == ["operators"]


def test_a_training_with_nothing_to_resume_from_says_so(tmp_path, monkeypatch):
    job = Job(monkeypatch, tmp_path)

    job.train(resume=True)

    assert job.messages[0] == (f"there is no checkpoint in {job.folder.checkpoints} to resume from: starting at step 1")
    assert "initial weights" in job.done
    assert job.first_step == 1


def resumes_after(monkeypatch, step):
    """Lets a training resume after a step."""
    monkeypatch.setattr(
        module, "resume_training", lambda reader, train_step, digests: (step, f"state of {reader.step}", None)
    )


def test_a_resumed_training_goes_on_after_its_newest_checkpoint(tmp_path, monkeypatch, saved):
    job = Job(monkeypatch, tmp_path / "parent")
    for step in (3, 4):
        job.save(step)
    resumes_after(monkeypatch, 4)

    job.train(resume=True, load=saved)  # what it would load first is in its own checkpoint

    assert job.first_step == 5
    assert job.loaded_states == ["state of 4"]
    assert job.messages[0] == f"resumed from {job.folder.checkpoints / 'iteration_00000004'} after step 4"
    assert job.done == [
        "barrier",
        "reading the checkpoint",
        "preparing the first step",
        "prepare",
        "all is read",
        "steps",
        "close",
    ]


@pytest.mark.parametrize(("finished", "takes_steps"), [(8, True), (9, False), (10, False)])
def test_a_training_that_is_done_takes_no_step(tmp_path, monkeypatch, finished, takes_steps):
    job = Job(monkeypatch, tmp_path)
    job.save(finished)
    resumes_after(monkeypatch, finished)

    assert job.train(resume=True) == max(finished, 9)

    assert ("steps" in job.done) == takes_steps
    assert (job.messages[-1] == f"nothing to train: step {finished} of 9 is done") != takes_steps
    assert job.folder.config.exists()


def test_a_training_may_start_from_the_weights_of_another(tmp_path, monkeypatch, saved):
    job = Job(monkeypatch, tmp_path / "parent")

    job.train(load=saved)

    assert job.done[1:3] == ["initial weights", "weights of step 3"]
    assert job.messages[0] == f"started from the weights of {saved / 'checkpoint' / 'iteration_00000003'}"
    assert job.first_step == 1


def test_the_stream_is_closed_whatever_ends_the_steps(tmp_path, monkeypatch):
    job = Job(monkeypatch, tmp_path)
    job.error = OSError("no space")

    with pytest.raises(OSError, match="no space"):
        job.train()

    assert job.done[-1] == "close"


def test_a_training_is_not_started_again_without_resume(tmp_path, monkeypatch):
    job = Job(monkeypatch, tmp_path)
    job.save(4)
    monkeypatch.setattr(module, "differences", lambda reader, config, digests: [])

    with pytest.raises(TrainingError) as refused:
        job.train()

    assert str(refused.value) == (
        f"{job.folder.root} already holds a training up to step 4, of this kind. Continue with --resume, or choose "
        f"another --training.run_name, or remove {job.folder.checkpoints}"
    )
    assert job.done == ["barrier"]


def test_a_training_of_another_kind_is_not_offered_to_be_resumed(tmp_path, monkeypatch):
    job = Job(monkeypatch, tmp_path)
    job.save(4)
    monkeypatch.setattr(module, "differences", lambda reader, config, digests: ["seed was 1, is 2", "eps"])

    with pytest.raises(
        TrainingError, match=r"up to step 4, of a different kind \(seed was 1, is 2; eps\)\. Choose another --training"
    ):
        job.train()


def test_the_run_folder_is_locked_during_the_steps(tmp_path, monkeypatch):
    job = Job(monkeypatch, tmp_path)
    locks = []
    monkeypatch.setattr(module, "run_steps", lambda *_: locks.append((job.folder.root / ".train.lock").exists()) or 9)

    job.train()

    assert locks == [True]
    assert not (job.folder.root / ".train.lock").exists()


@pytest.mark.parametrize("reason", ["no such device\nat line 7", "  no such device"])
def test_a_device_that_is_not_there_is_named(monkeypatch, reason):
    def refuse(target):
        raise RuntimeError(reason)

    monkeypatch.setattr(module.ms, "set_device", refuse)

    with pytest.raises(
        ConfigError,
        match=r"context.device_target is Ascend, which MindSpore does not find here \(no such device\); use --con",
    ):
        set_device(load_config(None, {"context.device_target": "Ascend"}))


def test_the_device_is_set_once(monkeypatch):
    monkeypatch.setattr(module.ms, "set_device", lambda target: pytest.fail("it can be set only once"))
    set_device(load_config())

    assert module.ms.get_context("mode") == module.ms.PYNATIVE_MODE


def test_an_import_path_that_mindspore_cannot_read_is_named(monkeypatch):
    monkeypatch.setattr(module, "unreadable_import_path", lambda: "/tmp/\udcff")

    with pytest.raises(ConfigError, match=r"sys.path has /tmp/\\xff, whose name is not UTF-8"):
        set_device(load_config())


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
