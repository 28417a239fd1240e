"""Tokenizers and routing tables of a checkpoint: those of its vocabularies and domains, verified, of limited size."""

import shutil
from dataclasses import replace

import pytest

from mindpangu.checkpoint import CheckpointReader, SavedState, read_table, read_tokenizers
from mindpangu.errors import CheckpointError
from tests.fuzz.readers import OLDER

LIMIT = (8 << 20) + 2 * 2 * 10_000_000  # of a table for the two RRE layers
TABLE = "routing/en.safetensors"


@pytest.fixture
def checkpoint(tmp_path):
    """A real checkpoint of a tiny model, to be spoiled."""
    shutil.copytree(OLDER, tmp_path / "older")
    return tmp_path / "older/run/checkpoint/iteration_00000004"


def test_a_checkpoint_has_the_tokenizers_and_the_table_of_its_training(checkpoint):
    reader = CheckpointReader(checkpoint)
    digests = SavedState.read(reader).digests

    tokenizers = read_tokenizers(reader, reader.config())
    table = read_table(reader, reader.config())

    assert list(tokenizers) == ["signs", "letters"]
    for name, tokenizer in tokenizers.items():
        assert tokenizer.digest == digests[f"tokenizer of embedding slot {name}"]
    assert table.digest == digests["routing table"]


def test_without_vocabularies_there_is_one_tokenizer(checkpoint):
    reader = CheckpointReader(checkpoint)
    reader.files["tokenizer/main.model"] = reader.files["tokenizer/signs.model"]
    shutil.copy(checkpoint / "tokenizer/signs.model", checkpoint / "tokenizer/main.model")
    config = reader.config()
    config = replace(config, domains=replace(config.domains, vocabularies=()))

    assert list(read_tokenizers(reader, config)) == ["main"]


def test_a_dense_model_has_no_table(checkpoint):
    reader = CheckpointReader(checkpoint)
    config = reader.config()

    assert read_table(reader, replace(config, model=replace(config.model, rre_layers=0))) is None


@pytest.mark.parametrize("name", [TABLE, "tokenizer/letters.model"])
def test_an_altered_file_is_named(checkpoint, name):
    data = bytearray((checkpoint / name).read_bytes())
    data[-1] ^= 1
    (checkpoint / name).write_bytes(data)
    reader = CheckpointReader(checkpoint)

    with pytest.raises(CheckpointError, match=f"{name} was altered"):
        read_tokenizers(reader, reader.config())
        read_table(reader, reader.config())


def test_a_missing_table_is_named(checkpoint):
    reader = CheckpointReader(checkpoint)
    del reader.files[TABLE]

    with pytest.raises(CheckpointError, match=f"has no {TABLE}"):
        read_table(reader, reader.config())


@pytest.mark.parametrize(
    ("num_bytes", "message"), [(LIMIT, "its manifest says"), (LIMIT + 1, "allowed: <= 48,388,608")]
)
def test_a_table_too_large_for_the_model_is_not_read(checkpoint, num_bytes, message):
    reader = CheckpointReader(checkpoint)
    config = reader.config()
    reader.files[TABLE] = reader.files[TABLE] | {"bytes": num_bytes}

    with pytest.raises(CheckpointError, match=f"{TABLE} has .* bytes.*{message}"):
        read_table(reader, config)
