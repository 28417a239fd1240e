"""Rounds of a tiny model: what a round trains on, how it resumes after a kill, and what is refused."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.config import load_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import Loader, TokenShards
from mindpangu.domains import build_domains
from mindpangu.errors import CheckpointError, ConfigError, DataError, TrainingError
from mindpangu.language_model import load_model
from mindpangu.signals import StoppedBySignal
from mindpangu.tiny.rounds import batch_losses
from mindpangu.tiny.rounds.adopt import adopt
from mindpangu.tiny.rounds.batch_losses import recorded_losses
from mindpangu.tiny.rounds.files import BatchLosses, RoundSample, losses_file, sample_file
from mindpangu.tiny.rounds.progress import RoundSettings, RoundsProgress, is_done
from mindpangu.tiny.rounds.sampling import draw_round
from mindpangu.tiny.rounds.training import learning_rate_of_round, train_rounds
from mindpangu.train.metrics import read_metrics
from mindpangu.train.run import open_run, train
from mindpangu.train.schedule import learning_rate
from mindpangu.train.step import TrainStep

SETTINGS = RoundSettings(rounds=2, rate=0.5, parts=3)
N = 12
DRAWN = 6


class Killed(BaseException):
    """Simulates a kill: no code catches it."""


def run_rounds(overrides, settings=SETTINGS, resume=False, **changes):
    """Trains all rounds; returns the messages."""
    messages = []
    config = load_config(None, overrides | {key.replace("__", "."): value for key, value in changes.items()})
    train_rounds(config, settings, resume, messages.append)
    return messages


def checkpoint_hashes(folder):
    """Returns the hash of every file of the newest checkpoint, except the configuration."""
    reader = CheckpointReader(folder)
    return {name: entry["blake2b"] for name, entry in reader.files.items() if name != "config.yaml"}


def recorded_steps(folder):
    """Returns step → (loss, learning rate)."""
    return {record["step"]: (record["loss"], record["lr"]) for record in read_metrics(folder / "metrics.jsonl")}


def kill_in_step(monkeypatch, step):
    """Kills the training in its step `step`, counted from now."""
    run = TrainStep.run
    steps_taken = itertools.count(1)

    def run_or_die(self, *arguments, **named):
        if next(steps_taken) == step:
            raise Killed
        return run(self, *arguments, **named)

    monkeypatch.setattr(TrainStep, "run", run_or_die)


def copy_run(run, parent):
    """Copies a run into `parent`; returns (overrides, run folder) of the copy."""
    overrides, folder, *_ = run
    shutil.copytree(folder, parent / "run")
    return overrides | {"training.output_dir": str(parent)}, parent / "run"


@pytest.fixture(scope="module")
def two_rounds(first_round, tmp_path_factory):
    """(overrides, run folder, messages) of two rounds without an interruption. Read-only."""
    overrides, folder = copy_run(first_round, tmp_path_factory.mktemp("two_rounds"))
    return overrides, folder, run_rounds(overrides)


@pytest.fixture(scope="module")
def killed(first_round, tmp_path_factory):
    """(overrides, run folder) of a training that was killed in step 5 of round 2. Read-only."""
    overrides, folder = copy_run(first_round, tmp_path_factory.mktemp("killed"))
    with pytest.MonkeyPatch.context() as patch:
        kill_in_step(patch, 5)
        with pytest.raises(Killed):
            run_rounds(overrides)
    return overrides, folder


@pytest.fixture
def killed_copy(killed, tmp_path):
    """A copy of `killed` that a test may train further."""
    return copy_run(killed, tmp_path / "killed")


@pytest.fixture
def two_rounds_copy(two_rounds, tmp_path):
    """A copy of `two_rounds` that a test may train further."""
    return copy_run(two_rounds, tmp_path)


# ---- What a round trains on ------------------------------------------------------------------------------------------


def test_frozen_losses_are_those_of_the_frozen_model_on_the_batches_of_round_1(first_round, two_rounds):
    overrides, folder = first_round
    reader = CheckpointReader(folder)
    config = load_config(None, overrides)

    losses = BatchLosses.load(losses_file(two_rounds[1] / "rounds", 1))
    assert (losses.round, losses.source, losses.checkpoint) == (1, "frozen", reader.digest)
    assert losses.losses_J.dtype == np.float64
    model = load_model(reader)
    loader = Loader(TokenShards.open(folder / "data"), model.domains, config)
    for loss in losses.losses_J:
        (batch,) = loader.next_step().micro_batches
        expected = np.average(model.token_losses(batch).astype(np.float64), weights=batch.loss_mask_BS)
        assert loss == pytest.approx(expected, rel=1e-12)
    assert len(losses.losses_J) == N


def test_the_loss_of_several_micro_batches_is_the_mean_over_all_their_targets(first_round):
    _, folder = first_round
    model = load_model(CheckpointReader(folder))
    config = load_config(None, first_round[0] | {"training.global_batch_size": "12"})
    batches = Loader(TokenShards.open(folder / "data"), model.domains, config).next_step().micro_batches
    assert len(batches) == 3
    batches[0].loss_mask_BS[:, 3:] = 0  # so that the mean of the means differs

    loss = batch_losses._loss(model, batches, 0)

    losses = np.concatenate([model.token_losses(batch)[batch.loss_mask_BS > 0] for batch in batches])
    assert loss == pytest.approx(losses.astype(np.float64).mean(), rel=1e-12)


def test_a_round_is_drawn_by_its_losses_and_replays_steps_of_round_1(two_rounds):
    overrides, folder, messages = two_rounds
    config = load_config(None, overrides)

    losses = BatchLosses.load(losses_file(folder / "rounds", 1))
    sample = RoundSample.load(sample_file(folder / "rounds", 2))
    np.testing.assert_array_equal(sample.batches, draw_round(losses.losses_J, 0.5, 3, config.data.seed, 2))
    assert np.bincount(sample.batches // 4).tolist() == [2, 2, 2]  # of each part of 4 batches
    assert (len(sample), sample.steps_before, sample.last_step) == (DRAWN, N, N + DRAWN)
    assert sample.losses == losses.digest
    loader = Loader(TokenShards.open(folder / "data"), build_domains(config), config)
    states = [loader.state()] + [loader.next_step().next_state for _ in range(N)]
    assert sample.states == [states[batch] for batch in sample.batches]
    assert any("round 2 trains on 6 of 12 batches" in message for message in messages)
    assert RoundsProgress.from_folder(RunFolder(folder)).loader == {"round": 2, "batch": 6, "sample": sample.digest}
    assert sorted(recorded_steps(folder)) == list(range(1, N + DRAWN + 1))


def test_a_round_has_the_losses_of_the_same_steps_taken_one_by_one(first_round, two_rounds):
    """Weights, Adam's state and the update count carry over from round 1."""
    from mindpangu.train.checkpointing import resume_training

    overrides, folder = first_round
    config = load_config(None, overrides)
    run = open_run(config)
    step = TrainStep(run.model)
    reader = CheckpointReader(folder)
    finished, _, _ = resume_training(reader, step, reader.json("state.json")["digests"])
    assert finished == N
    sample = RoundSample.load(sample_file(two_rounds[1] / "rounds", 2))
    loader = Loader(run.shards, run.model.domains, config)
    recorded = recorded_steps(two_rounds[1])

    for i, state in enumerate(sample.states, 1):
        loader.load_state(state)
        plan = run.model.planner.plan_step(loader.next_step().micro_batches)
        rate = learning_rate(config.lr_scheduler, i * N / DRAWN)
        result = step.run(plan.batches, plan.plans, rate, None, plan.num_targets)
        assert (result.loss, rate) == recorded[N + i]
    step.finish()


def test_the_learning_rate_can_restart(two_rounds):
    overrides, folder, _ = two_rounds
    config = load_config(None, overrides)
    sample = RoundSample.load(sample_file(folder / "rounds", 2))

    restarted = learning_rate_of_round(config, SETTINGS, sample)

    assert [restarted(N + k) for k in range(1, 7)] == [learning_rate(config.lr_scheduler, 2 * k) for k in range(1, 7)]
    assert restarted(N + 1) == config.lr_scheduler.learning_rate  # 2 warm-up steps of 12 are 1 of 6
    assert restarted(N + DRAWN) == config.lr_scheduler.lr_end


def test_the_learning_rate_can_continue(two_rounds):
    overrides, folder, _ = two_rounds
    config = load_config(None, overrides | {"lr_scheduler.decay_steps": "18"})
    sample = RoundSample.load(sample_file(folder / "rounds", 2))

    continued = learning_rate_of_round(config, replace(SETTINGS, schedule="continue"), sample)

    assert [continued(N + k) for k in range(1, 7)] == [learning_rate(config.lr_scheduler, N + k) for k in range(1, 7)]
    assert continued(N + 1) > continued(N + DRAWN) == config.lr_scheduler.lr_end


@pytest.mark.slow
def test_a_third_round_is_drawn_from_all_batches_by_the_model_of_the_second(two_rounds_copy):
    overrides, folder = two_rounds_copy
    second = RoundsProgress.from_folder(RunFolder(folder))

    run_rounds(overrides, replace(SETTINGS, rounds=3))

    losses = BatchLosses.load(losses_file(folder / "rounds", 2))
    sample = RoundSample.load(sample_file(folder / "rounds", 3))
    assert losses.checkpoint == sample.checkpoint == second.reader.digest
    assert len(losses.losses_J) == N
    assert sample.begins_at == second.loader
    assert (sample.steps_before, sample.last_step) == (18, 24)
    assert set(sample.batches.tolist()) - set(RoundSample.load(sample_file(folder / "rounds", 2)).batches.tolist())
    assert CheckpointReader(folder).step == 24
    assert is_done(load_config(None, overrides), replace(SETTINGS, rounds=3))


def test_recorded_losses_are_those_of_the_last_step_on_each_batch(two_rounds):
    _, folder, _ = two_rounds
    recorded = {step: loss for step, (loss, _) in recorded_steps(folder).items()}
    sample = RoundSample.load(sample_file(folder / "rounds", 2))

    after_round_1 = recorded_losses(folder / "metrics.jsonl", N, [])
    losses_J = recorded_losses(folder / "metrics.jsonl", N, [sample])

    np.testing.assert_array_equal(after_round_1, [recorded[step] for step in range(1, N + 1)])
    for batch in range(N):
        positions = np.flatnonzero(sample.batches == batch)
        last_step = N + 1 + positions[0] if len(positions) else batch + 1
        assert losses_J[batch] == recorded[last_step]


@pytest.mark.slow
def test_a_round_can_be_drawn_by_recorded_losses(run_copy):
    overrides, folder = run_copy
    settings = replace(SETTINGS, losses="recorded")

    run_rounds(overrides, settings)

    losses = BatchLosses.load(losses_file(folder / "rounds", 1))
    assert losses.source == "recorded"
    np.testing.assert_array_equal(losses.losses_J, recorded_losses(folder / "metrics.jsonl", N, []))
    assert is_done(load_config(None, overrides), settings)


def test_missing_and_non_finite_recorded_losses_are_refused(first_round, tmp_path):
    _, folder = first_round
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = tmp_path / "metrics.jsonl"

    metrics.write_text("\n".join(lines[:7]))
    with pytest.raises(TrainingError, match="no finite loss of step 8; use --losses frozen"):
        recorded_losses(metrics, N, [])

    lines[4] = json.dumps(json.loads(lines[4]) | {"loss": None})
    metrics.write_text("\n".join(lines))
    with pytest.raises(TrainingError, match="no finite loss of step 5"):
        recorded_losses(metrics, N, [])


# ---- Resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 6))])
def test_a_killed_round_resumes_bit_for_bit(run_copy, two_rounds, monkeypatch, step):
    overrides, folder = run_copy
    with monkeypatch.context() as patch:
        kill_in_step(patch, step)
        with pytest.raises(Killed):
            run_rounds(overrides)
    sample = sample_file(folder / "rounds", 2).read_bytes()
    saved = (step - 1) // 2 * 2
    assert CheckpointReader(folder).step == N + saved
    if saved:
        with pytest.raises(
            TrainingError, match=f"already holds round 2 up to batch {saved} of 6; continue it with --resume"
        ):
            run_rounds(overrides)

    run_rounds(overrides, resume=True)

    assert sample_file(folder / "rounds", 2).read_bytes() == sample
    assert recorded_steps(folder) == recorded_steps(two_rounds[1])
    assert checkpoint_hashes(folder) == checkpoint_hashes(two_rounds[1])


@pytest.mark.slow
def test_a_killed_first_round_resumes_bit_for_bit(first_round, two_rounds, tmp_path, monkeypatch):
    overrides, source = first_round
    shutil.copytree(source, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint", "metrics.jsonl"))
    overrides = overrides | {"training.output_dir": str(tmp_path)}
    with monkeypatch.context() as patch:
        kill_in_step(patch, 8)
        with pytest.raises(Killed):
            run_rounds(overrides)
    with pytest.raises(TrainingError, match=r"up to step 6, of this kind\. Continue with --resume"):
        run_rounds(overrides)

    run_rounds(overrides, resume=True)

    assert recorded_steps(tmp_path / "run") == recorded_steps(two_rounds[1])
    # state.json differs: it has the digest of the sample, which depends on the name of the folder
    resumed = checkpoint_hashes(tmp_path / "run") | {"state.json": ""}
    assert resumed == checkpoint_hashes(two_rounds[1]) | {"state.json": ""}


@pytest.mark.slow
def test_an_interrupted_computation_of_the_losses_resumes(run_copy, two_rounds, monkeypatch):
    overrides, folder = run_copy
    compute_loss = batch_losses._loss
    computed = []

    def compute_or_die(model, batches, batch_index):
        computed.append(batch_index)
        if len(computed) == 6:
            raise Killed
        return compute_loss(model, batches, batch_index)

    monkeypatch.setattr(batch_losses, "_loss", compute_or_die)
    monkeypatch.setattr(batch_losses, "SAVE_SECONDS", 0.0)
    with pytest.raises(Killed):
        run_rounds(overrides)
    path = losses_file(folder / "rounds", 1)
    assert len(BatchLosses.load(path).losses_J) == 5
    assert not BatchLosses.load(path).is_complete

    run_rounds(overrides)

    assert computed == [*range(6), *range(5, N)]  # saved losses are not computed again
    assert path.read_bytes() == losses_file(two_rounds[1] / "rounds", 1).read_bytes()
    assert checkpoint_hashes(folder) == checkpoint_hashes(two_rounds[1])


def test_a_signal_saves_the_losses_so_far(run_copy, monkeypatch):
    overrides, folder = run_copy
    compute_loss = batch_losses._loss

    def signal_and_compute(model, batches, batch_index):
        if batch_index == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss(model, batches, batch_index)

    monkeypatch.setattr(batch_losses, "_loss", signal_and_compute)

    with pytest.raises(StoppedBySignal):
        train_rounds(load_config(None, overrides), SETTINGS, log=lambda text: None)

    assert len(BatchLosses.load(losses_file(folder / "rounds", 1)).losses_J) == 4
    assert CheckpointReader(folder).step == N


def test_a_finished_training_is_not_changed(two_rounds):
    overrides, folder, _ = two_rounds
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    config = load_config(None, overrides)

    assert is_done(config, SETTINGS)
    assert not is_done(config, replace(SETTINGS, rounds=3))
    train_rounds(config, SETTINGS, log=lambda text: None)

    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_another_run_can_take_over_the_first_round(first_round, two_rounds, tmp_path):
    overrides, folder = first_round
    overrides = overrides | {"training.output_dir": str(tmp_path), "training.run_name": "other"}
    config = load_config(None, overrides)
    source = CheckpointReader(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    for _ in range(2):  # the second call does nothing
        adopt(source, config, log=lambda text: None)
        assert CheckpointReader(tmp_path / "other").digest == source.digest
    run_rounds(overrides)

    assert checkpoint_hashes(tmp_path / "other") == checkpoint_hashes(two_rounds[1])
    adopt(source, config, log=lambda text: None)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    earlier = CheckpointReader(folder / "checkpoint" / "iteration_00000010")
    with pytest.raises(TrainingError, match="did not start from"):
        adopt(earlier, load_config(None, overrides | {"training.steps": "10"}))
    with pytest.raises(TrainingError, match="is already of round 2; give the checkpoint of round 1"):
        adopt(CheckpointReader(two_rounds[1]), load_config(None, overrides | {"training.run_name": "third"}))


# ---- Refusals --------------------------------------------------------------------------------------------------------


def test_an_ordinary_training_does_not_resume_a_round(two_rounds_copy):
    overrides, _ = two_rounds_copy
    config = load_config(None, overrides | {"training.steps": "30"})

    with pytest.raises(DataError, match="is in round 2 of several; continue with `mindpangu tiny rounds`"):
        train(open_run(config), resume=True, log=lambda text: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.25}, "drawn with other settings: --rate was 0.5, is 0.25"),
        ({"parts": 2}, "--parts was 3, is 2"),
        ({"losses": "recorded"}, "--losses was 'frozen', is 'recorded'"),
        ({"schedule": "continue"}, "--schedule was 'restart', is 'continue'"),
    ],
)
def test_settings_that_a_round_did_not_begin_with_are_refused(two_rounds, changes, message):
    overrides, _, _ = two_rounds
    with pytest.raises(TrainingError, match=message):
        run_rounds(overrides, replace(SETTINGS, **changes), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__eps": "0.1"}, "optimizer.eps was 1e-08, is 0.1"),
        ({"data__seed": "4"}, "data.seed was 0, is 4"),
        ({"training__local_batch_size": "8"}, "training.local_batch_size was 4, is 8"),
    ],
)
def test_a_changed_configuration_is_refused(two_rounds, first_round, changes, message):
    for overrides in (two_rounds[0], first_round[0]):
        with pytest.raises(CheckpointError, match=message):
            run_rounds(overrides, resume=True, **changes)


def test_more_or_fewer_steps_than_round_1_had_are_refused(run_copy):
    overrides, _ = run_copy
    with pytest.raises(TrainingError, match=r"trained up to step 12, but round 1 ends at step 10"):
        run_rounds(overrides, training__steps="10")


@pytest.mark.parametrize("state", ["killed_copy", "run_copy"])
@pytest.mark.slow
def test_altered_data_and_another_tokenizer_are_refused(request, state):
    from mindpangu.data.prepare import prepare_shards, prepare_tokenizer

    overrides, folder = request.getfixturevalue(state)
    shard = folder / "data" / "en.train.bin"
    original = shard.read_bytes()
    shard.write_bytes(original[:100] + bytes([original[100] ^ 1]) + original[101:])

    with pytest.raises(DataError, match=r"en\.train\.bin was altered"):
        run_rounds(overrides, resume=True)

    shard.write_bytes(original)
    other = load_config(None, overrides | {"training.run_name": "other", "data.heldout_fraction": "0.3"})
    for prepare in (prepare_tokenizer, prepare_shards):
        prepare(other, log=lambda text: None)
    for name in ("tokenizer", "data"):
        shutil.rmtree(folder / name)
        shutil.copytree(folder.with_name("other") / name, folder / name)

    with pytest.raises(CheckpointError, match=r"data.*changed.*tokenizer of vocabulary main changed"):
        run_rounds(overrides, resume=True, data__heldout_fraction="0.2")


def test_a_damaged_missing_or_different_sample_is_refused(killed_copy):
    overrides, folder = killed_copy
    path = sample_file(folder / "rounds", 2)
    original = path.read_bytes()
    sample = RoundSample.load(path)

    for damaged in (original[:-8], original[:40], b""):
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match="is not a complete file of a round's sample"):
            run_rounds(overrides, resume=True)

    path.write_bytes(original[:-8] + bytes(8))
    with pytest.raises(TrainingError, match="was altered: its content does not match the digest"):
        run_rounds(overrides, resume=True)

    path.write_bytes(original.replace(b'\\"format_version\\": \\"2\\"', b'\\"format_version\\": \\"7\\"'))
    with pytest.raises(TrainingError, match="has format 7 of a round's sample; this version of mindpangu reads"):
        run_rounds(overrides, resume=True)

    replace(sample, batches=np.arange(len(sample))).save(path)
    with pytest.raises(TrainingError, match="saved in round 2 with another sample"):
        run_rounds(overrides, resume=True)

    replace(sample, round=3).save(path)
    with pytest.raises(TrainingError, match="is the sample of round 3; copy that of round 2 back"):
        run_rounds(overrides, resume=True)

    shutil.copy(losses_file(folder / "rounds", 1), path)
    with pytest.raises(TrainingError, match="is a file of a round's losses, not of a round's sample"):
        run_rounds(overrides, resume=True)

    path.unlink()
    with pytest.raises(TrainingError, match=f"was saved in round 2, but {path} is missing"):
        run_rounds(overrides, resume=True)


def test_damaged_losses_and_those_of_another_checkpoint_are_refused(run_copy, two_rounds):
    overrides, folder = run_copy
    path = losses_file(folder / "rounds", 1)
    path.parent.mkdir(exist_ok=True)
    whole = losses_file(two_rounds[1] / "rounds", 1)

    path.write_bytes(whole.read_bytes()[:-3])
    with pytest.raises(TrainingError, match=r"is not a complete file of a round's losses: .* remove it"):
        run_rounds(overrides)

    altered = bytearray(whole.read_bytes())
    altered[-2] ^= 1
    path.write_bytes(altered)
    with pytest.raises(TrainingError, match="was altered"):
        run_rounds(overrides)

    losses = BatchLosses.load(whole)
    BatchLosses(1, "frozen", "0" * 32, N, losses.losses_J[:3]).save(path)
    with pytest.raises(TrainingError, match="has losses of another training"):
        run_rounds(overrides)


def test_a_sample_of_another_first_round_is_refused(run_copy, two_rounds):
    overrides, folder = run_copy
    path = sample_file(folder / "rounds", 2)
    path.parent.mkdir(exist_ok=True)
    replace(RoundSample.load(sample_file(two_rounds[1] / "rounds", 2)), checkpoint="0" * 32).save(path)

    with pytest.raises(TrainingError, match="was drawn for another checkpoint"):
        run_rounds(overrides)


def test_a_non_finite_loss_is_reported_with_its_batch_and_samples(run_copy, monkeypatch):
    from mindpangu.language_model import LanguageModel

    overrides, folder = run_copy
    token_losses = LanguageModel.token_losses
    calls = []

    def broken(self, batch, domain_of_slot=None):
        calls.append(batch)
        return token_losses(self, batch, domain_of_slot) * (np.nan if len(calls) == 5 else 1)

    monkeypatch.setattr(LanguageModel, "token_losses", broken)

    with pytest.raises(TrainingError, match=r"the loss of batch 5 is nan over 64 targets, .* samples \["):
        run_rounds(overrides)

    assert not sample_file(folder / "rounds", 2).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "--rounds is 0; allowed: >= 1"),
        ({"rate": 0.0}, "--rate is 0.0; allowed: > 0 and <= 1"),
        ({"rate": 1.5}, "--rate is 1.5"),
        ({"rate": float("nan")}, "--rate is nan"),
        ({"parts": 0}, "--parts is 0"),
        ({"losses": "best"}, "--losses is 'best'; allowed: frozen, recorded"),
        ({"schedule": "no"}, "--schedule is 'no'; allowed: restart, continue"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(SETTINGS, **changes)


def test_more_than_one_process_is_refused(first_round):
    overrides = first_round[0] | {"parallelism.data_parallel": "2"}
    with pytest.raises(ConfigError, match="asks for 2 processes, but rounds are trained in one"):
        run_rounds(overrides)


@pytest.mark.slow
def test_a_round_resumes_after_its_process_is_killed(run_copy, two_rounds):
    overrides, folder = run_copy
    options = [word for key, value in overrides.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "mindpangu", "tiny", "rounds", "--parts", "3", "--resume", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step:[15/"):
            break
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    resumed = subprocess.run(command, capture_output=True, text=True, check=False)

    assert resumed.returncode == 0, resumed.stderr
    assert recorded_steps(folder) == recorded_steps(two_rounds[1])
    assert checkpoint_hashes(folder) == checkpoint_hashes(two_rounds[1])
