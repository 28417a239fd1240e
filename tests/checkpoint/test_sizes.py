"""A configuration that describes a larger model than its checkpoint holds is refused before memory is taken for it."""

import shutil
from pathlib import Path

import pytest

from mindpangu.checkpoint import CheckpointReader, expert_file_name
from mindpangu.checkpoint.dense import DenseFiles
from mindpangu.checkpoint.sizes import require_sizes
from mindpangu.config import load_config
from mindpangu.domains import build_domains
from mindpangu.errors import CheckpointError
from mindpangu.language_model import ModelParts
from mindpangu.lifecycle.blueprint import Blueprint
from mindpangu.model.parameter_count import count_parameters
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


DENSE = ("dense_00000_of_00002.safetensors", "dense_00001_of_00002.safetensors")


class Files:
    """The files of a checkpoint that are just as large as a small model needs, in two dense files; each expert in two
    shards."""

    folder = Path("iteration_00000001")

    def __init__(self, **changes):
        overrides = {"model.hidden_size": "8", "domains.experts_per_domain": "3", "domains.experts": "{zh: 2}"}
        self.config = load_config(None, overrides | {key.replace("__", "."): value for key, value in changes.items()})
        self.damaged = set()
        count = count_parameters(self.config)
        dense = count.total - count.experts
        self.files = {DENSE[0]: {"bytes": 4 * (dense // 3)}, DENSE[1]: {"bytes": 4 * (dense - dense // 3)}}
        self.experts = [
            (layer, domain.name, index)
            for layer in range(self.config.model.rre_layers)
            for domain in build_domains(self.config)
            for index in range(domain.num_experts)
        ]
        for expert in self.experts:
            of_expert = count.experts // len(self.experts)
            sizes = (4 * (of_expert // 2), 4 * (of_expert - of_expert // 2))
            self.files |= {name: {"bytes": size} for name, size in zip(shards_of(expert), sizes, strict=True)}

    def require_size(self, name):
        if name in self.damaged:
            raise CheckpointError(f"{name} is damaged")
        return self.folder / name

    def shorten(self, name, num_bytes):
        self.files[name] = {"bytes": self.files[name]["bytes"] - num_bytes}


def shards_of(expert):
    return [expert_file_name(*expert, (shard, 2)) for shard in range(2)]


@pytest.mark.parametrize("rre_layers", ["0", "2"])
def test_a_model_as_large_as_its_files_is_accepted(rre_layers):
    files = Files(model__rre_layers=rre_layers)

    require_sizes(files, files.config)

    for name in DENSE:
        files.shorten(name, 1)
        with pytest.raises(CheckpointError, match="dense parameters, but the files of this checkpoint hold at most"):
            require_sizes(files, files.config)
        files.shorten(name, -1)


@pytest.mark.parametrize("shard", range(2))
def test_an_expert_must_be_as_large_as_the_models(shard):
    files = Files()
    files.shorten(shards_of(files.experts[0])[shard], 1)

    with pytest.raises(CheckpointError, match="parameters per expert, but"):
        require_sizes(files, files.config)


def test_as_many_experts_must_be_there_as_the_model_has():
    files = Files()
    for name in shards_of(files.experts[5]):
        del files.files[name]

    with pytest.raises(CheckpointError, match=r"describes 22 experts, but .* hold at most 21"):
        require_sizes(files, files.config)


def test_one_undamaged_expert_among_the_first_eight_is_enough():
    """All experts have the same shapes, so the others' sizes say no more."""
    files = Files()
    for expert in files.experts[:7]:
        files.damaged.add(shards_of(expert)[1])
    files.damaged.update(*map(shards_of, files.experts[8:]))

    require_sizes(files, files.config)

    files.damaged.add(shards_of(files.experts[7])[0])
    files.damaged -= set(shards_of(files.experts[8]))
    with pytest.raises(CheckpointError, match=r"rre_00\.\w+\.000\.1_of_2\.safetensors is damaged"):
        require_sizes(files, files.config)


@pytest.mark.parametrize("name", DENSE)
def test_every_dense_file_must_be_undamaged(name):
    files = Files()
    files.damaged.add(name)

    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        require_sizes(files, files.config)
