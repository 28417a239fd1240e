"""A configuration that describes a larger model than its checkpoint holds is refused before memory is taken for it."""

import shutil

import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.checkpoint.dense import DenseFiles
from mindpangu.errors import CheckpointError
from mindpangu.language_model import ModelParts
from mindpangu.lifecycle.blueprint import Blueprint
from tests.checkpoint.forging import forge_config
from tests.fuzz.readers import OLDER


@pytest.fixture
def checkpoint(tmp_path):
    """A real checkpoint of a tiny model, to be forged."""
    shutil.copytree(OLDER, tmp_path / "older")
    return tmp_path / "older/run/checkpoint/iteration_00000004"


@pytest.mark.parametrize(
    ("overrides", "described"),
    [
        ({"model.num_layers": "1000000000000"}, "dense parameters"),
        ({"model.num_layers": "1000000000000", "model.rre_layers": "1000000000000"}, "dense parameters"),
        ({"model.hidden_size": str(2**40)}, "dense parameters"),
        ({"model.ffn_hidden_size": str(2**40)}, "dense parameters"),
        ({"model.seq_length": "32768"}, "dense parameters"),
        ({"model.tied_head": "false", "model.hidden_size": "64"}, "dense parameters"),
        ({"model.num_layers": "2", "model.ffn_hidden_size": str(2**40)}, "parameters per expert"),
        ({"domains.experts_per_domain": "65535"}, "experts"),
        ({"domains.experts": "{zh: 3}"}, "experts"),
        ({"model.rre_layers": "3"}, "experts"),
    ],
)
@pytest.mark.parametrize("use", [CheckpointReader.config, ModelParts.from_checkpoint, Blueprint.from_checkpoint])
def test_a_model_larger_than_its_files_is_refused(checkpoint, use, overrides, described):
    forge_config(checkpoint, overrides)
    reader = CheckpointReader(checkpoint)

    with pytest.raises(CheckpointError, match=rf"config\.yaml describes \S+ {described}, but the files of this check"):
        use(reader)


def test_the_sizes_of_the_manifest_are_compared_with_the_files(checkpoint):
    forge_config(checkpoint, {"model.ffn_hidden_size": str(2**40)})
    reader = CheckpointReader(checkpoint)
    for name in ("dense_00000_of_00001.safetensors", "experts/rre_00.zh.000.safetensors"):
        reader.files[name] = reader.files[name] | {"bytes": 1 << 62}

    with pytest.raises(CheckpointError, match=r"dense_.* has 111632 bytes, its manifest says 4611686018427387904"):
        reader.config()


def test_a_damaged_expert_does_not_hide_the_configuration(checkpoint):
    """A verb may leave it out, or replace it."""
    path = min((checkpoint / "experts").iterdir())
    path.write_bytes(path.read_bytes()[:-1])

    assert CheckpointReader(checkpoint).config().model.num_layers == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.hidden_size": "4"}, r"has shape \[8[^]]*\], the model needs \[4"),
        ({"model.seq_length": "15"}, r"position_embedding has shape \[16, 8\], the model needs \[15, 8\]"),
        (
            {"model.query_layer": "false"},
            r"has the tensor (adam_[mv]\.)?query_layer\.\S+, which its model lacks",
        ),
    ],
)
def test_dense_tensors_must_match_the_configuration(checkpoint, overrides, message):
    forge_config(checkpoint, overrides)
    reader = CheckpointReader(checkpoint)

    with pytest.raises(CheckpointError, match=message):
        DenseFiles(reader, reader.config())


def test_dense_files_of_the_model_itself_are_accepted(checkpoint):
    reader = CheckpointReader(checkpoint)

    shapes = DenseFiles(reader, reader.config()).shapes

    assert shapes["word_embedding"] == (810, 8)
