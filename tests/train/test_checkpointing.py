"""Checkpointer: snapshots are exact while training continues, unchanged experts are linked, errors are raised."""

import errno
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, ExpertFile, SavedState, list_iterations, prune
from mindpangu.checkpoint import writer as writer_module
from mindpangu.config import ModelConfig, load_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import CheckpointError
from mindpangu.language_model import SavedExperts
from mindpangu.model.initialization import network_tensors
from mindpangu.signals import StopOnSignal
from mindpangu.train.checkpointing import Checkpointer, load_weights, resume_training
from mindpangu.train.loss_scale import LossScale
from mindpangu.train.run import open_run, set_device, train
from mindpangu.train.step import TrainStep

SLAB_TENSORS = network_tensors(ModelConfig())

LOADER_STATE = {"samples_taken": [0]}


class Training:
    """A training whose steps are updates with made-up gradients; nothing of the model is compiled."""

    def __init__(self, overrides, parent, **changes):
        shutil.copytree(Path(overrides["training.output_dir"]) / "prepared", parent / "run")
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        config = load_config(
            None, overrides | {"training.output_dir": str(parent), "training.run_name": "run"} | changes
        )
        set_device(config)
        self.folder = RunFolder.from_config(config)
        self.folder.checkpoints.mkdir()
        self.step = TrainStep(open_run(config).model)
        self.store = self.step.model.store
        self.store.initialize()
        self.messages = []

    def checkpointer(self, previous=None):
        def log(text):
            assert threading.current_thread() is threading.main_thread()
            self.messages.append(text)

        return Checkpointer(self.folder, self.step, {}, None, previous, log)

    def update(self, *domains):
        """Updates the dense parameters, and experts 0 and 1 of some domains in every layer."""
        self.step.updates += 1
        dense = [Tensor(np.ones(p.shape, np.float32)) for p in self.step.decoder.parameters.values()]
        self.step.optimizer.update(dense, self.step.updates, 0.1, 1.0)
        activated = np.zeros(self.store.step_counts.shape, bool)
        activated[:, list(domains), :2] = True
        gradients = {
            (layer, domain): [np.ones_like(self.store.weights[layer][domain][name]) for name in SLAB_TENSORS]
            for layer in range(self.store.num_layers)
            for domain in domains
        }
        self.store.update(gradients, activated, 0.1, 1.0)

    def checkpoints(self):
        return [CheckpointReader(path) for path in list_iterations(self.folder.checkpoints)]

    def scratch(self):
        return list(self.folder.checkpoints.glob(".*"))


@pytest.fixture
def training(tiny_overrides, tmp_path):
    return Training(tiny_overrides, tmp_path)


class Gate:
    """Stops the checkpointer's thread before it writes the file `name`, until `open` is called."""

    def __init__(self, monkeypatch, name, seconds=20):
        self.reached = threading.Event()
        self.opened = threading.Event()
        write = CheckpointWriter.write

        def held(writer, written, data):
            if written == name:
                self.reached.set()
                assert self.opened.wait(seconds)
            write(writer, written, data)

        monkeypatch.setattr(CheckpointWriter, "write", held)

    def open(self):
        self.opened.set()


def hashes(reader, without=("config.yaml",)):
    return {name: entry["blake2b"] for name, entry in reader.files.items() if name not in without}


def experts_of(reader):
    """Returns name → (step count, inode) of every expert file, after verifying it."""
    checkpoints = {}
    for name in (name for name in reader.files if name.startswith("experts/")):
        header, _ = ExpertFile.decode(reader.folder / name, reader.read(name))
        checkpoints[name] = (header.step_count, (reader.folder / name).stat().st_ino)
    return checkpoints


@pytest.mark.parametrize(
    "held_file",
    ["config.yaml", "dense_00000_of_00001.safetensors", "experts/rre_00.zh.001.safetensors", "state.json"],
)
def test_a_checkpoint_written_during_training_is_the_snapshot(tiny_overrides, tmp_path, monkeypatch, held_file):
    """Experts and dense parameters are updated before and between the files of the checkpoint."""
    for name in ("async", "sync"):
        (tmp_path / name).mkdir()
    asynchronous = Training(tiny_overrides, tmp_path / "async")
    synchronous = Training(tiny_overrides, tmp_path / "sync", checkpoint__async_save="false")
    with synchronous.checkpointer() as checkpointer:
        synchronous.update(0, 2)
        checkpointer.save(1, LOADER_STATE)
        assert synchronous.messages[0].startswith("saved checkpoint of step 1 in ")
    gate = Gate(monkeypatch, held_file)

    with asynchronous.checkpointer() as checkpointer:
        asynchronous.update(0, 2)
        checkpointer.save(1, LOADER_STATE)
        assert gate.reached.wait(10)
        for _ in range(3):
            asynchronous.update(0, 1, 2, 3)
        checkpointer.poll()
        assert not asynchronous.messages
        gate.open()

    assert len(asynchronous.messages) == 1
    (actual,) = asynchronous.checkpoints()
    (expected,) = synchronous.checkpoints()
    assert hashes(actual) == hashes(expected)
    assert asynchronous.folder.latest.read_text() == "1\n"


def test_the_watchers_know_which_checkpoint_a_training_waits_for(training, monkeypatch):
    """They hear of it before the wait, during which a rank may be lost."""
    reports = []
    gate = Gate(monkeypatch, "state.json")

    def report_status(step=None, doing=None):
        reports.append((doing, gate.opened.is_set()))
        gate.open()

    training.step.processes.report_status = report_status

    with training.checkpointer() as checkpointer:
        checkpointer.save(7, LOADER_STATE)

    assert reports == [("writing the checkpoint of step 7", False)]


def test_unchanged_experts_are_links(training):
    with training.checkpointer() as checkpointer:
        for step, domains in ((1, (0, 1)), (2, (1,)), (3, ())):
            training.update(*domains)
            checkpointer.save(step, LOADER_STATE)

    first = experts_of(CheckpointReader(training.folder.checkpoints / "iteration_00000002"))
    second = experts_of(CheckpointReader(training.folder.checkpoints / "iteration_00000003"))
    assert first == second  # no expert was updated in step 3
    names = [path.name for path in list_iterations(training.folder.checkpoints)]
    assert names == ["iteration_00000002", "iteration_00000003"]

    training.update(1)
    with training.checkpointer(
        SavedExperts(training.checkpoints()[-1], training.store.step_counts - 1)
    ) as checkpointer:
        checkpointer.save(4, LOADER_STATE)  # every count differs from those given for the previous checkpoint

    newest = experts_of(training.checkpoints()[-1])
    assert all(newest[name][1] != inode for name, (_, inode) in second.items())


def test_only_unchanged_experts_are_links_after_a_resumption(training):
    with training.checkpointer() as checkpointer:
        training.update(0, 1)
        checkpointer.save(1, LOADER_STATE)
    (first,) = training.checkpoints()
    before = experts_of(first)
    training.store.step_counts[:] = 0
    training.messages.clear()

    assert resume_training_of(training, first) == 1
    with training.checkpointer(SavedExperts(first, training.store.step_counts.copy())) as checkpointer:
        training.update(1, 3)
        checkpointer.save(2, LOADER_STATE)

    after = experts_of(training.checkpoints()[-1])
    for name, (count, inode) in after.items():
        assert (before[name] == (count, inode)) == (before[name][0] == count), name
    changed = {name for name in after if before[name] != after[name]}
    assert len(changed) == 2 * 2 * training.store.num_layers

    assert prune(training.folder.checkpoints, 1)
    assert experts_of(training.checkpoints()[0]) == after  # a link outlives the first name of its file


def resume_training_of(training, reader):
    """Reads a checkpoint back as `--resume` does."""
    return resume_training(reader, training.step, {})[0]


def state_of(training):
    """Copies everything that a step may change."""
    step = training.step
    arrays = {name: parameter.asnumpy().copy() for name, parameter in step.decoder.parameters.items()}
    for group in (step.optimizer.moment1, step.optimizer.moment2):
        arrays |= {parameter.name: parameter.asnumpy().copy() for parameter in group.values()}
    for kind in ("weights", "moment1", "moment2"):
        for layer, domains in enumerate(getattr(training.store, kind)):
            for domain, slab in enumerate(domains):
                arrays |= {f"{kind} {layer} {domain} {name}": array.copy() for name, array in slab.items()}
    return arrays | {"counts": training.store.step_counts.copy()}


@pytest.fixture
def saved(training):
    """(a training with fp16's loss scale that has saved step 5, what it saved)."""
    training.step.loss_scale = LossScale(64, window=5)
    training.update(0, 2)
    training.update(1)
    for overflow in (True, False, False):
        training.step.loss_scale.update(overflow)
    training.step.guard.reason_to_skip({"loss": 5.5, "global_norm": 1.25})
    with Checkpointer(training.folder, training.step, {"data": "d"}, "ab" * 16, None, training.messages.append) as each:
        each.save(5, {"samples_taken": [3, 4]})
    return training, state_of(training)


def test_a_resumed_training_has_every_part_of_its_state(saved):
    training, before = saved
    training.update(0, 1, 2, 3)
    training.step.guard.reason_to_skip({"loss": 9.5, "global_norm": 2.25})
    training.step.loss_scale = LossScale(8, window=5)
    (reader,) = training.checkpoints()

    found = resume_training(reader, training.step, {"data": "d"})

    assert found == (5, {"samples_taken": [3, 4]}, "ab" * 16)
    assert training.step.updates == 2
    assert training.step.guard.state() == {"loss": [5.5], "global_norm": [1.25]}
    assert training.step.loss_scale.state() == {"value": 32.0, "steps_without_overflow": 2}
    for name, array in state_of(training).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_checkpoint_with_other_digests_is_not_resumed(saved):
    training, _ = saved
    (reader,) = training.checkpoints()
    with pytest.raises(CheckpointError, match="data"):
        resume_training(reader, training.step, {"data": "e"})


def test_only_weights_are_loaded_into_a_new_run(saved):
    training, before = saved
    training.update(0, 1, 2, 3)
    later = state_of(training)
    (reader,) = training.checkpoints()

    load_weights(reader, training.step.model)

    after = state_of(training)
    weights = [name for name in after if name.startswith("weights ") or name in training.step.decoder.parameters]
    moments = [name for name in after if name.startswith("adam_")]
    assert len(weights) > 20
    assert len(moments) > 20
    for name in weights:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    for name in moments:
        np.testing.assert_array_equal(after[name], later[name], err_msg=name)


def test_weights_of_a_model_that_differs_are_refused(saved, monkeypatch):
    """The message says in what."""
    training, _ = saved
    model = training.step.model
    (reader,) = training.checkpoints()
    before = state_of(training)
    wider = replace(model.config, model=replace(model.config.model, hidden_size=32))
    domains = [*model.domains[:-1], replace(model.domains[-1], vocabulary="another")]
    differences = {
        "model.hidden_size is 16 there, 32 here": ("config", wider),
        "its vocabularies are .* of .* rows, this run's are": ("vocabularies", SimpleNamespace(names=(), sizes=())),
        "domain code is in vocabulary 'main' there, in 'another' here": ("domains", domains),
        "its tokenizer is not this run's": ("tokenizers", {"main": SimpleNamespace(model_bytes=b"another")}),
        "its routing table of domain .* is not this run's": ("table", SimpleNamespace(domain_digest=lambda name: "")),
    }

    for words, (attribute, value) in differences.items():
        with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=words):
            patch.setattr(model, attribute, value)
            load_weights(reader, model)

    for name, array in state_of(training).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_an_altered_routing_table_is_not_compared(saved):
    training, _ = saved
    (reader,) = training.checkpoints()
    table = reader.folder / "routing" / "zh.safetensors"
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"zh\.safetensors was altered"):
        load_weights(CheckpointReader(reader.folder), training.step.model)


def test_a_checkpoint_that_no_training_made_is_not_resumed(saved, monkeypatch):
    training, _ = saved
    (reader,) = training.checkpoints()
    state = replace(SavedState.read(reader), loader=None, made_by="extract")
    monkeypatch.setattr("mindpangu.train.checkpointing.SavedState", SimpleNamespace(read=lambda reader: state))

    with pytest.raises(CheckpointError, match=r"was made by `mindpangu extract`, not by a training .* with --load"):
        resume_training(reader, training.step, {"data": "d"})


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EMLINK, errno.EPERM])
def test_experts_that_cannot_be_linked_are_written(training, monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writer_module.os, "link", refuse)

    with training.checkpointer() as checkpointer:
        for step in (1, 2):
            training.update(0)
            checkpointer.save(step, LOADER_STATE)

    first, second = training.checkpoints()
    before = experts_of(first)
    after = experts_of(second)
    assert not {inode for _, inode in before.values()} & {inode for _, inode in after.values()}
    same = [name for name in before if before[name][0] == after[name][0]]
    assert same
    assert all(first.files[name] == second.files[name] for name in same)


def test_an_update_while_links_fail_is_not_saved(training, monkeypatch):
    """An expert whose link fails is written as it was, even if it was updated meanwhile."""
    linking = threading.Event()
    go_on = threading.Event()

    def refuse(*_, **__):
        linking.set()
        assert go_on.wait(20)
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    with training.checkpointer() as checkpointer:
        checkpointer.save(1, LOADER_STATE)
        checkpointer._finish()
        monkeypatch.setattr(writer_module.os, "link", refuse)
        checkpointer.save(2, LOADER_STATE)
        assert linking.wait(10)
        training.update(0, 1, 2, 3)
        go_on.set()

    first, second = training.checkpoints()
    assert hashes(second, ("state.json",)) == hashes(first, ("state.json",))


def test_only_changed_files_need_disk_space(training, monkeypatch):
    with training.checkpointer() as checkpointer:
        checkpointer.save(1, LOADER_STATE)
        checkpointer._finish()
        training.update(2)
        (first,) = training.checkpoints()
        changed = [
            f"experts/rre_{layer:02d}.bilingual.{index:03d}.safetensors" for layer in range(2) for index in range(2)
        ]
        needed = sum(first.files[name]["bytes"] for name in changed)
        needed += first.files["dense_00000_of_00001.safetensors"]["bytes"]
        usage = shutil.disk_usage(training.folder.root)
        monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda path: usage._replace(free=needed))

        checkpointer.save(2, LOADER_STATE)
        checkpointer._finish()
        training.update(2, 3)
        checkpointer.save(3, LOADER_STATE)
        with pytest.raises(CheckpointError, match=r"iteration_00000003 needs .* MB, but the disk has"):
            checkpointer._finish()

    assert [reader.step for reader in training.checkpoints()] == [1, 2]


def fail_at(monkeypatch, name):
    """Makes the disk full when the file `name` of a checkpoint is written."""
    write = writer_module.write_durably

    def full(path, data):
        if re.sub(r"\.[\w-]+\.writing", ".writing", str(path)).endswith(name):
            path.write_bytes(next(iter([data] if isinstance(data, bytes) else data))[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(writer_module, "write_durably", full)


@pytest.mark.parametrize("name", ["rre_01.en.000.safetensors", "dense_00000_of_00001.safetensors", "manifest.json"])
def test_a_full_disk_is_reported_at_the_next_step(training, monkeypatch, name):
    with pytest.raises(CheckpointError, match=r"iteration_00000002 cannot be written: No space left on device"):
        with training.checkpointer() as checkpointer:
            checkpointer.save(1, LOADER_STATE)
            checkpointer._finish()
            fail_at(monkeypatch, name)
            training.update(0, 1, 2, 3)
            checkpointer.save(2, LOADER_STATE)
            for _ in range(1000):
                training.update(0, 1, 2, 3)
                checkpointer.poll()
            pytest.fail("nothing was raised")

    (first,) = training.checkpoints()
    assert not training.scratch()
    assert training.store.before_update is None
    assert resume_training_of(training, first) == 1
    assert training.folder.latest.read_text() == "1\n"


def test_a_failure_does_not_hide_the_error_that_ended_training(training, monkeypatch):
    fail_at(monkeypatch, "manifest.json")

    with pytest.raises(RuntimeError, match="of the step"), training.checkpointer() as checkpointer:
        checkpointer.save(1, LOADER_STATE)
        raise RuntimeError("of the step")

    assert "cannot be written: No space left on device" in training.messages[0]


def test_an_error_of_the_training_waits_for_the_checkpoint(training, monkeypatch):
    gate = Gate(monkeypatch, "state.json")

    with pytest.raises(RuntimeError), training.checkpointer() as checkpointer:
        checkpointer.save(1, LOADER_STATE)
        threading.Timer(0.2, gate.open).start()
        raise RuntimeError

    assert [reader.step for reader in training.checkpoints()] == [1]
    assert training.messages[0].startswith("saved checkpoint of step 1 in ")


def test_only_one_checkpoint_is_written_at_once(training, monkeypatch):
    gate = Gate(monkeypatch, "state.json")

    with training.checkpointer() as checkpointer:
        checkpointer.save(1, LOADER_STATE)
        training.update(1)
        threading.Timer(0.3, gate.open).start()
        checkpointer.save(2, LOADER_STATE)
        assert training.checkpoints()[0].step == 1
        saved, waited = training.messages
        assert saved.startswith("saved checkpoint of step 1 in ")
        assert re.match(r"step 2 waited \d+\.\d s for the checkpoint of step 1", waited)

    assert [reader.step for reader in training.checkpoints()] == [1, 2]
    assert len(training.messages) == 3


@pytest.mark.parametrize("while_waiting", [False, True])
def test_a_second_signal_abandons_the_checkpoint(training, monkeypatch, while_waiting):
    gate = Gate(monkeypatch, "config.yaml")
    main = threading.main_thread().ident

    with pytest.raises(KeyboardInterrupt), StopOnSignal(), training.checkpointer() as checkpointer:
        checkpointer.save(1, LOADER_STATE)
        assert gate.reached.wait(10)
        threading.Timer(1.2, gate.open).start()
        if not while_waiting:
            raise KeyboardInterrupt
        for delay in (0.2, 0.9):
            threading.Timer(delay, signal.pthread_kill, (main, signal.SIGTERM)).start()

    assert gate.opened.is_set()  # the thread has ended
    assert not training.checkpoints()
    assert not training.scratch()


def test_a_pointer_file_that_cannot_be_written_is_an_error(training, monkeypatch):
    training.folder.latest.mkdir()

    with pytest.raises(CheckpointError, match=r"iteration_00000001 is complete, but latest_checkpointed"):
        with training.checkpointer() as checkpointer:
            checkpointer.save(1, LOADER_STATE)

    assert [reader.step for reader in training.checkpoints()] == [1]


# ---- Whole runs ------------------------------------------------------------------------------------------------------


def whole_run(overrides, parent, messages, after_step=lambda step: None, resume=False, **changes):
    """Trains 8 steps with checkpoints after steps 3, 6, and 8."""
    settings = {"training.steps": "8", "checkpoint.save_steps": "3", "checkpoint.keep_last": "9"}
    settings |= {"training.output_dir": str(parent), "training.run_name": "run"}
    config = load_config(None, overrides | settings | {key.replace("__", "."): text for key, text in changes.items()})
    set_device(config)
    if not resume:
        shutil.copytree(Path(overrides["training.output_dir"]) / "prepared", parent / "run")
    run = open_run(config)
    count = 0
    run_step = TrainStep.run

    def counted(*arguments):
        nonlocal count
        count += 1
        result = run_step(*arguments)
        after_step(count)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "run", counted)
        train(run, resume, log=messages.append)
    return run.folder


@pytest.mark.slow
def test_runs_save_the_same_with_and_without_a_thread(tiny_overrides, tmp_path, monkeypatch):
    for name in ("sync", "async"):
        (tmp_path / name).mkdir()
    folder = whole_run(tiny_overrides, tmp_path / "sync", [], checkpoint__async_save="false")
    expected = [CheckpointReader(path) for path in list_iterations(folder.checkpoints)]
    assert [reader.step for reader in expected] == [3, 6, 8]

    gate = Gate(monkeypatch, "config.yaml")
    folder = whole_run(tiny_overrides, tmp_path / "async", [], lambda step: gate.open() if step == 5 else None)
    checkpoints = [CheckpointReader(path) for path in list_iterations(folder.checkpoints)]
    assert [hashes(reader) for reader in checkpoints] == [hashes(reader) for reader in expected]

    links = 0
    for readers in (expected, checkpoints):
        for one, other in pairwise(readers):
            before = experts_of(one)
            after = experts_of(other)
            for name in before:
                same = before[name][0] == after[name][0]
                links += same
                assert (before[name][1] == after[name][1]) == same, name
    assert links

    # resume without a thread from a checkpoint that a thread wrote, and link its files
    for reader in checkpoints[1:]:
        shutil.rmtree(reader.folder)
    folder.latest.write_text("3\n")
    whole_run(tiny_overrides, tmp_path / "async", [], resume=True, checkpoint__async_save="false")
    resumed = [CheckpointReader(path) for path in list_iterations(folder.checkpoints)]
    assert [hashes(reader) for reader in resumed] == [hashes(reader) for reader in expected]
    before = experts_of(resumed[0])
    after = experts_of(resumed[1])
    assert all((before[name] == after[name]) == (before[name][0] == after[name][0]) for name in before)


def test_a_run_ends_when_its_checkpoint_cannot_be_written(tiny_overrides, tmp_path, monkeypatch):
    checkpoints = tmp_path / "run" / "checkpoint"
    steps = []

    def after_step(step):
        steps.append(step)
        if step == 7:
            while list(checkpoints.glob(".*.writing")):
                time.sleep(0.01)
            time.sleep(0.2)

    fail_at(monkeypatch, ".iteration_00000006.writing/state.json")

    with pytest.raises(CheckpointError, match="iteration_00000006 cannot be written: No space left"):
        whole_run(tiny_overrides, tmp_path, [], after_step)

    assert steps[-1] == 7
    assert [path.name for path in list_iterations(checkpoints)] == ["iteration_00000003"]
    assert not list(checkpoints.glob(".*"))
