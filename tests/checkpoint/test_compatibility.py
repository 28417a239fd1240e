"""Resuming: which configuration keys may differ from the checkpoint's, and which inputs may not."""

from pathlib import Path

import pytest

from mindpangu.checkpoint import CheckpointReader, SavedState
from mindpangu.checkpoint.compatibility import (
    differences,
    input_digests,
    is_finished,
    refuse_differences,
    refuse_other_model,
    refuse_settings,
)
from mindpangu.config import load_config
from mindpangu.errors import CheckpointError, ConfigError
from tests.fuzz.readers import OLDER

DIGESTS = {"data (token shards)": "d1", "routing table": "t1", "tokenizer of embedding slot main": "k1"}
BEFORE = {"training.global_batch_size": "64", "training.local_batch_size": "4", "training.steps": "100"}


class Reader:
    """A checkpoint that was saved with some overrides."""

    folder = Path("iteration_00000010")
    step = 10

    def __init__(self, digests=DIGESTS, **overrides):
        self._saved = BEFORE | keys(overrides)
        self._digests = digests

    def config(self, overrides=None):
        return load_config(None, self._saved | (overrides or {}))

    def local_settings(self):
        return {"training.output_dir": "here", "training.run_name": "moved"}

    def json(self, name):
        assert name == "state.json"
        return {"step": 10, "updates": 10, "loader": None, "loaded": None, "digests": self._digests}


def keys(overrides):
    return {key.replace("__", "."): str(value) for key, value in overrides.items()}


def changed(digests=DIGESTS, **overrides):
    return differences(Reader(), load_config(None, BEFORE | keys(overrides)), digests)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"checkpoint__save_steps": 7, "checkpoint__keep_last": 9},
        {"monitor__heldout_samples": 5, "monitor__log_steps": 3},
        {"parallelism__data_parallel": 4},
        {"parallelism__tensor_parallel": 2},
        {"parallelism__data_parallel": 4, "parallelism__expert_parallel": 2},
        {"parallelism__optimizer_sharding": "false"},
        {"training__recompute": "true"},
        {"training__restarts": 9},
        {"training__run_name": "another", "training__output_dir": "elsewhere"},
        {"experts__mode": "device"},
        {"experts__overlap": "false", "experts__staging": "true", "experts__host_threads": 7},
        {"experts__storage": "mapped", "experts__storage_folder": "scratch"},
        {"data__corpus": "[other.jsonl]", "data__max_bad_records": 3},
        {"training__steps": 200, "lr_scheduler__decay_steps": 100},
    ],
)
def test_settings_that_change_no_bit_of_the_training_may_differ(overrides):
    assert changed(**overrides) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"lr_scheduler__learning_rate": 0.5}, ["lr_scheduler.learning_rate was 0.001, is 0.5"]),
        ({"training__seed": 5}, ["training.seed was"]),
        ({"training__global_batch_size": 32}, ["training.global_batch_size was 64, is 32"]),
        ({"model__hidden_size": 128}, ["model.hidden_size was"]),
        ({"data__seed": 5}, ["data.seed was"]),
        ({"data__mixture": "{bilingual: 2, zh: 1, en: 1, code: 1}"}, ["data.mixture"]),
        ({"experts__mode": "host_full"}, ["experts.mode was 'host_ecss', is 'host_full'"]),
        ({"optimizer__eps": 1e-3}, ["optimizer.eps was"]),
        ({"training__steps": 200}, ["(it follows training.steps unless it is set)"]),
        ({"context__precision": "fp16"}, ["context.precision was"]),
        ({"routing__seed": 9, "training__max_norm": 7}, ["routing.seed was", "training.max_norm was"]),
    ],
)
def test_settings_that_change_the_training_are_named(overrides, words):
    found = changed(**overrides)

    for word in words:
        assert any(word in phrase for phrase in found), found
    config = load_config(None, BEFORE | keys(overrides))
    with pytest.raises(CheckpointError, match=r"cannot resume iteration_00000010: .* was .* start a new run"):
        refuse_differences(Reader(), config, DIGESTS)


def test_leaving_host_full_is_named():
    config = load_config(None, BEFORE)
    found = differences(Reader(experts__mode="host_full"), config, DIGESTS)
    assert found == ["experts.mode was 'host_full', is 'host_ecss'"]


@pytest.mark.parametrize("name", DIGESTS)
def test_every_input_must_be_the_same(name):
    without = {other: digest for other, digest in DIGESTS.items() if other != name}

    other = changed(DIGESTS | {name: "x2"})
    missing_now = changed(without)
    missing_then = differences(Reader(without), load_config(None, BEFORE), DIGESTS)

    assert [len(each) for each in (other, missing_now, missing_then)] == [1, 1, 1]
    spoken = name.replace("embedding slot", "vocabulary")
    assert other[0].startswith(f"the {spoken} changed (hash ")
    assert "x2 now" in other[0]
    assert "None now" in missing_now[0]
    assert "None then" in missing_then[0]


def test_a_dense_model_has_no_routing_table():
    digests = input_digests("d1", None, {})
    assert digests == {"data (token shards)": "d1", "routing table": "none"}


def test_only_the_model_and_its_domains_must_be_the_same_to_read_weights():
    refuse_other_model(Reader(), load_config(None, BEFORE | {"training.seed": "5", "data.seed": "5"}))

    for key, value in {"model.hidden_size": "128", "domains.experts_per_domain": "7"}.items():
        with pytest.raises(CheckpointError, match=f"holds another model: .*{key} is"):
            refuse_other_model(Reader(), load_config(None, BEFORE | {key: value}))


def test_a_verb_that_takes_its_configuration_from_the_checkpoint_refuses_any_other():
    refuse_settings(Reader(), load_config(None, BEFORE))

    with pytest.raises(ConfigError, match=r"leave out --monitor\.log_steps, --training\.seed"):
        refuse_settings(Reader(), load_config(None, BEFORE | {"training.seed": "5", "monitor.log_steps": "3"}))


def test_the_output_folder_does_not_matter_to_a_verb_that_writes_elsewhere():
    refuse_settings(Reader(), load_config(None, BEFORE | {"training.output_dir": "elsewhere"}))


@pytest.mark.parametrize("run", [{}, {"training.output_dir": "here", "training.run_name": "moved"}])
def test_the_run_folder_may_be_the_saved_one_or_the_one_where_the_checkpoint_lies(run):
    refuse_settings(Reader(), load_config(None, BEFORE | run))

    with pytest.raises(ConfigError, match=r"leave out --training\.run_name"):
        refuse_settings(Reader(), load_config(None, BEFORE | run | {"training.run_name": "other"}))


CHECKPOINTS = OLDER / "run" / "checkpoint"


@pytest.mark.parametrize(
    ("overrides", "changes", "loaded", "finished"),
    [
        ({}, {}, None, True),
        ({"training.run_name": "moved", "experts.overlap": "false"}, {}, None, True),
        ({"training.steps": "3"}, {}, None, False),
        ({"training.steps": "5"}, {}, None, False),
        ({"training.seed": "99"}, {}, None, False),
        ({}, {"data (token shards)": "other"}, None, False),
        ({}, {}, "0" * 32, False),
    ],
)
def test_a_training_is_finished_if_its_last_step_was_saved(overrides, changes, loaded, finished):
    reader = CheckpointReader(CHECKPOINTS)
    digests = SavedState.read(reader).digests | changes
    config = reader.config(overrides)

    assert is_finished(CHECKPOINTS, config, digests, loaded) is finished


def test_a_training_without_a_checkpoint_is_not_finished(tmp_path):
    config = load_config(None, {})

    assert is_finished(tmp_path, config, {}, None) is False
