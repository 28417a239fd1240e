"""A resumed run equals one that was never stopped, bit for bit; a run with other settings is refused."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mindpangu.config import load_config
from mindpangu.errors import CheckpointError, DataError, InUseError, TrainingError
from mindpangu.train.metrics import read_metrics
from mindpangu.train.run import open_run, set_device, train
from mindpangu.train.step import TrainStep


def run_training(overrides, resume=False, load=None, **changes):
    overrides = overrides | {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config(None, overrides)
    set_device(config)
    opened = open_run(config)
    messages = []
    train(opened, resume, load, log=messages.append)
    return opened, messages


def losses(folder):
    return {
        record["step"]: (record["loss"], record["global_norm"]) for record in read_metrics(folder / "metrics.jsonl")
    }


def weights(folder):
    newest = max((folder / "checkpoint").glob("iteration_*"))
    manifest = json.loads((newest / "manifest.json").read_text())
    return {name: entry["blake2b"] for name, entry in manifest["files"].items() if name != "config.yaml"}


SCHEDULES = {
    "rotating": {},
    "rotating, accumulated": {"data.domains_per_step": "2", "training.global_batch_size": "8"},
    "mixed, accumulated": {
        "data.schedule": "mixed",
        "data.domains_per_step": "4",
        "data.mixture": "{bilingual: 1, zh: 2, en: 9, code: 0.3}",
        "training.global_batch_size": "8",
    },
}


MAY_DIFFER = {
    "experts__staging": "true",
    "checkpoint__save_steps": "5",
    "checkpoint__keep_last": "1",
    "checkpoint__async_save": "false",
    "monitor__log_steps": "4",
    "monitor__heldout_samples": "2",
    "parallelism__optimizer_sharding": "false",
    "parallelism__exchange": "node",
    "parallelism__timeout": "77",
}
"""Keys that may change when a run resumes, and change no bit of it."""


@pytest.mark.parametrize(
    "schedule",
    [
        "mixed, accumulated",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("rotating", "rotating, accumulated")),
    ],
)
def test_stop_and_resume_equals_one_run(tiny_run, tmp_path, schedule):
    overrides, folder = tiny_run
    overrides = overrides | SCHEDULES[schedule]
    run_training(overrides)
    expected = losses(folder)
    final = weights(folder)
    assert sorted(expected) == [1, 2, 3, 4, 5, 6]

    other = tmp_path / "other"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("checkpoint", "metrics.jsonl"))
    changes = {"training__run_name": "other", "lr_scheduler__decay_steps": "6"}
    run_training(overrides, training__steps="3", experts__mode="device", **changes)
    assert len(losses(other)) == 3
    _, messages = run_training(overrides, resume=True, **MAY_DIFFER, **changes)
    assert "resumed from" in messages[0]
    assert losses(other) == expected
    assert weights(other) == final


def test_every_step_gets_the_plans_of_the_next_one(tiny_run, monkeypatch):
    overrides, _ = tiny_run
    calls = []
    run = TrainStep.run

    def recorded(self, batches, plans, learning_rate, upcoming=None, num_targets=None):
        calls.append((plans, upcoming))
        return run(self, batches, plans, learning_rate, upcoming, num_targets)

    monkeypatch.setattr(TrainStep, "run", recorded)

    run_training(overrides, training__steps="3")

    assert len(calls) == 3
    assert all(upcoming is plans for (_, upcoming), (plans, _) in itertools.pairwise(calls))
    assert calls[-1][1] is None


def test_metrics_after_the_checkpoint_are_computed_again(tiny_run):
    overrides, folder = tiny_run
    run_training(overrides, training__steps="4", lr_scheduler__decay_steps="6")
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines, lines[-1].replace('"step": 4', '"step": 5'), '{"step": 6, "lo']))

    run_training(overrides, resume=True)

    assert sorted(losses(folder)) == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in read_metrics(metrics)] == [1, 2, 3, 4, 5, 6]
    (kept,) = folder.glob("metrics.jsonl.set_aside-*")
    assert [json.loads(line)["step"] for line in kept.read_text().splitlines()] == [5]


@pytest.fixture(scope="module")
def finished(tiny_overrides, tmp_path_factory):
    """Overrides and folder of a finished tiny run; tests copy it before they change it."""
    parent = tmp_path_factory.mktemp("finished")
    shutil.copytree(Path(tiny_overrides["training.output_dir"]) / "prepared", parent / "run")
    overrides = tiny_overrides | {"training.output_dir": str(parent), "training.run_name": "run"}
    run_training(overrides, training__steps="2", lr_scheduler__decay_steps="6", lr_scheduler__warmup_steps="1")
    return overrides | {"lr_scheduler.decay_steps": "6", "lr_scheduler.warmup_steps": "1"}, parent / "run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scheduler__learning_rate": "0.5"}, "lr_scheduler.learning_rate was 0.001, is 0.5"),
        ({"optimizer__betas": "[0.8, 0.9]"}, r"optimizer.betas was \[0.9, 0.95\], is \[0.8, 0.9\]"),
        ({"model__hidden_size": "32"}, "model.ffn_hidden_size was 64, is 128; model.hidden_size was 16, is 32"),
        ({"data__seed": "3"}, "data.seed was 0, is 3"),
        ({"data__schedule": "mixed", "data__domains_per_step": "4"}, "data.schedule was 'rotating', is 'mixed'"),
        ({"experts__mode": "host_full"}, "experts.mode was 'host_ecss', is 'host_full'"),
        ({"training__max_norm": "2.0"}, "training.max_norm was 1.0, is 2.0"),
    ],
)
def test_changed_settings_are_refused(finished, changes, message):
    overrides, _ = finished
    with pytest.raises(CheckpointError, match=message):
        run_training(overrides, resume=True, **changes)


def copy_of(finished, tmp_path):
    overrides, folder = finished
    shutil.copytree(folder, tmp_path / "copy")
    return overrides | {"training.output_dir": str(tmp_path), "training.run_name": "copy"}, tmp_path / "copy"


def test_another_table_is_refused(finished, tmp_path):
    from mindpangu.data.prepare import prepare_routing, prepare_shards, prepare_tokenizer

    overrides, folder = copy_of(finished, tmp_path)
    other = load_config(None, overrides | {"routing.seed": "5", "training.run_name": "other"})
    for prepare in (prepare_tokenizer, prepare_shards, prepare_routing):
        prepare(other, log=lambda text: None)
    shutil.rmtree(folder / "routing")
    shutil.copytree(tmp_path / "other" / "routing", folder / "routing")

    with pytest.raises(CheckpointError, match="the routing table changed"):
        run_training(overrides, resume=True)


def test_altered_shards_are_refused(finished, tmp_path):
    overrides, folder = copy_of(finished, tmp_path)
    shard = folder / "data" / "en.train.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)

    with pytest.raises(DataError, match=r"en\.train\.bin was altered"):
        run_training(overrides, resume=True)


def test_a_damaged_or_swapped_expert_is_refused(finished, tmp_path):
    overrides, folder = copy_of(finished, tmp_path)
    experts = max((folder / "checkpoint").glob("iteration_*")) / "experts"
    one, other = sorted(experts.iterdir())[:2]

    one.write_bytes(one.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=rf"{one.name} has \d+ bytes"):
        run_training(overrides, resume=True)

    one.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match=f"{one.name} was altered"):
        run_training(overrides, resume=True)


def test_an_existing_training_is_not_overwritten(finished):
    overrides, folder = finished
    before = weights(folder)

    with pytest.raises(TrainingError, match=r"up to step 2, of this kind\. Continue with --resume"):
        run_training(overrides)
    with pytest.raises(
        TrainingError, match=r"of a different kind \(optimizer.eps was 1e-08, is 0.1\)\. Choose another"
    ):
        run_training(overrides, optimizer__eps="0.1")
    assert weights(folder) == before


def test_a_run_whose_only_checkpoint_is_damaged_is_neither_restarted_nor_overwritten(finished, tmp_path):
    overrides, folder = copy_of(finished, tmp_path)
    (checkpoint,) = (folder / "checkpoint").glob("iteration_*")
    (checkpoint / "manifest.json").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    for resume in (True, False):
        with pytest.raises(TrainingError, match=r"iteration_00000002 without a manifest.json, so .* start at step 1"):
            run_training(overrides, resume)

    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_that_failed_before_its_first_checkpoint_restarts_and_keeps_its_records(finished, tmp_path):
    overrides, folder = copy_of(finished, tmp_path)
    shutil.rmtree(folder / "checkpoint")
    records = (folder / "metrics.jsonl").read_bytes()

    with pytest.raises(
        TrainingError, match=r"names the checkpoint of step 2\. Copy the checkpoints back; or start over"
    ):
        run_training(overrides, resume=True, training__steps="1")
    (folder / "latest_checkpointed_iteration.txt").unlink()  # a run without a checkpoint has none
    _, messages = run_training(overrides, resume=True, training__steps="1")

    assert "starting at step 1" in messages[0]
    assert any("kept as metrics.jsonl.set_aside-1" in message for message in messages)
    assert (folder / "metrics.jsonl.set_aside-1").read_bytes() == records
    assert sorted(losses(folder)) == [1]


def test_load_starts_a_new_run_from_the_weights(finished, tiny_run):
    _, source = finished
    overrides, folder = tiny_run
    changes = {"training__steps": "3", "lr_scheduler__learning_rate": "1e-9", "lr_scheduler__lr_end": "0"}

    opened, messages = run_training(overrides, load=source, **changes)

    assert "started from the weights of" in messages[0]
    assert sorted(losses(folder)) == [1, 2, 3]
    from mindpangu.checkpoint import CheckpointReader
    from mindpangu.language_model import load_model

    loaded = load_model(CheckpointReader(source))
    for name, parameter in loaded.decoder.parameters.items():
        np.testing.assert_allclose(opened.model.decoder.parameters[name].asnumpy(), parameter.asnumpy(), atol=1e-7)

    shutil.rmtree(folder / "checkpoint")
    with pytest.raises(CheckpointError, match=r"model\.hidden_size is 16 there"):
        run_training(overrides, load=source, model__hidden_size="32", training__steps="3")


def test_load_takes_table_and_tokenizer_for_other_data_and_fewer_domains(finished, tiny_corpus, tmp_path):
    from mindpangu.data.prepare import prepare_routing, prepare_shards, prepare_tokenizer

    overrides, source = finished
    lines = [line for line in tiny_corpus.read_text().splitlines() if '"zh"' in line or '"en"' in line]
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(lines[::2]))
    overrides = overrides | {
        "training.output_dir": str(tmp_path),
        "training.run_name": "sub",
        "data.corpus": f"[{other}]",
        "domains.names": "[zh, en]",
    }
    parts = {"data.tokenizer": f"{source}/tokenizer/main.model", "routing.table": f"{source}/routing"}
    for keys in (overrides | {"data.tokenizer": parts["data.tokenizer"]}, overrides | parts):
        for prepare in (prepare_tokenizer, prepare_shards, prepare_routing):
            prepare(load_config(None, keys), log=lambda text: None)
        if "routing.table" not in keys:
            with pytest.raises(CheckpointError, match="its routing table of domain zh is not"):
                run_training(keys, load=source)

    opened, _ = run_training(overrides | parts, load=source, training__steps="3")
    assert [domain.name for domain in opened.model.domains] == ["zh", "en"]

    # resuming works because the run folder has a copy of the table
    run_training(overrides | parts, resume=True, training__steps="4")
    assert sorted(losses(tmp_path / "sub")) == [1, 2, 3, 4]


def test_load_refuses_another_tokenizer_and_other_vocabularies(finished, tiny_corpus, tmp_path):
    from mindpangu.data.prepare import prepare_routing, prepare_shards, prepare_tokenizer

    overrides, _ = finished
    text = tmp_path / "other.jsonl"
    text.write_text(tiny_corpus.read_text().replace("window", "widow"))
    overrides = overrides | {"training.output_dir": str(tmp_path), "model.rre_layers": "0"}

    def prepared(**changes):
        words = overrides | {key.replace("__", "."): value for key, value in changes.items()}
        for prepare in (prepare_tokenizer, prepare_shards, prepare_routing):
            prepare(load_config(None, words), log=lambda text: None)
        return words

    dense = prepared(training__run_name="dense")
    run_training(dense, training__steps="2")
    other = prepared(training__run_name="other", data__corpus=f"[{text}]")
    with pytest.raises(CheckpointError, match="its tokenizer is not this run's"):
        run_training(other, load=tmp_path / "dense")

    vocabularies = "[{{name: a, vocab_size: 420, domains: [{}]}}, {{name: b, vocab_size: 420, domains: [{}]}}]"
    one = prepared(training__run_name="one", domains__vocabularies=vocabularies.format("zh, bilingual", "en, code"))
    run_training(one, training__steps="2")
    two = prepared(training__run_name="two", domains__vocabularies=vocabularies.format("en, code", "zh, bilingual"))
    with pytest.raises(CheckpointError, match="domain bilingual is in vocabulary 'a' there, in 'b' here"):
        run_training(two, load=tmp_path / "one")


def test_two_trainings_do_not_share_a_folder(finished):
    import fcntl

    overrides, folder = finished
    with open(folder / ".train.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InUseError, match="is being trained by another process"):
            run_training(overrides, resume=True)


def command(overrides, *extra):
    options = [word for key, value in overrides.items() for word in (f"--{key}", value)]
    return [sys.executable, "-m", "mindpangu", "train", *options, *extra]


def kill_once(overrides, folder, rng, while_writing):
    """Starts or resumes a training and kills it after some steps, on request while a checkpoint is being written."""
    process = subprocess.Popen(command(overrides, "--resume"), stdout=subprocess.PIPE, text=True)
    steps = (line for line in process.stdout if line.startswith("step:["))
    for _ in range(1 if while_writing else rng.randint(1, 20)):
        next(steps)
    rest = threading.Thread(target=process.stdout.read)  # else the process would block once the pipe is full
    rest.start()
    if while_writing:
        stop_while_it_writes(process, folder, rng)
    else:
        time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.wait()
    rest.join()
    assert process.returncode == -signal.SIGKILL  # it was still running


def stop_while_it_writes(process, folder, rng):
    """Halts a training while it writes a checkpoint. A write takes milliseconds; if it is over, waits for the next."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if list((folder / "checkpoint").glob(".iteration_*.writing/*")):
            time.sleep(rng.uniform(0, 0.005))
            process.send_signal(signal.SIGSTOP)
            if list((folder / "checkpoint").glob(".iteration_*.writing/*")):
                return
            process.send_signal(signal.SIGCONT)
        time.sleep(0.0005)
    raise AssertionError("no checkpoint was seen half-written")


def kill_and_resume(overrides, folder, expected, kills, seed):
    """Kills a training at random moments, half of them while it writes a checkpoint; then lets it finish."""
    rng = random.Random(seed)
    for _ in range(kills // 2):
        kill_once(overrides, folder, rng, while_writing=False)
        kill_once(overrides, folder, rng, while_writing=True)
    done = subprocess.run(command(overrides, "--resume"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    assert losses(folder) == expected
    assert not list((folder / "checkpoint").glob(".*"))


@pytest.mark.slow
def test_killed_runs_resume_exactly(tiny_run):
    overrides, folder = tiny_run
    overrides = overrides | {"training.steps": "120", "checkpoint.save_steps": "3"}

    run_training(overrides)
    expected = losses(folder)
    shutil.rmtree(folder / "checkpoint")
    (folder / "metrics.jsonl").unlink()
    (folder / "latest_checkpointed_iteration.txt").unlink()

    kill_and_resume(overrides, folder, expected, kills=2, seed=0)


@pytest.mark.slow
def test_thirty_random_kills_resume_exactly(tiny_run):
    """Experts move: they are copied to the device and back, fetched ahead, and updated and saved during the steps."""
    overrides, folder = tiny_run
    overrides = overrides | {
        "training.steps": "1500",
        "checkpoint.save_steps": "7",
        "lr_scheduler.warmup_steps": "20",
        "experts.staging": "true",
    }

    run_training(overrides)
    expected = losses(folder)
    shutil.rmtree(folder / "checkpoint")
    (folder / "metrics.jsonl").unlink()
    (folder / "latest_checkpointed_iteration.txt").unlink()

    kill_and_resume(overrides, folder, expected, kills=30, seed=int(os.environ.get("SEED", 0)))


def test_a_signal_saves_a_checkpoint_first(tiny_run):
    overrides, folder = tiny_run
    overrides = overrides | {"training.steps": "5000", "checkpoint.save_steps": "5000"}
    process = subprocess.Popen(command(overrides), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step:[") and int(line[6:].split("/")[0]) >= 3:
            break
    process.send_signal(signal.SIGTERM)

    rest, _ = process.communicate(timeout=120)

    assert process.returncode == 143
    assert "with --resume to continue" in rest

    last = max(losses(folder))
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == f"{last}\n"
