"""One expert of a checkpoint: whole tensors from the files of any number of ranks; files that do not fit are named."""

import numpy as np
import pytest

from mindpangu.checkpoint import ExpertFile
from mindpangu.checkpoint.expert_tensors import ExpertTensors
from mindpangu.errors import CheckpointError
from mindpangu.parallel.expert_share import ExpertShare

SHAPES = {"up": (4, 6), "up_bias": (6,), "down": (6, 4), "down_bias": (4,)}
EXPERT = (1, "zh", 3)


def whole_tensors(with_moments=True):
    rng = np.random.default_rng(0)
    prefixes = ("", "adam_m.", "adam_v.") if with_moments else ("",)
    return {
        prefix + name: rng.standard_normal(shape).astype(np.float32)
        for prefix in prefixes
        for name, shape in SHAPES.items()
    }


class Files:
    """A checkpoint of one expert: its files, and which of them were compared with the manifest."""

    def __init__(self, folder, tensors, num_shards=1, change=lambda shard, tensors: None):
        self.folder = folder
        self.verified = []
        (folder / "experts").mkdir()
        for shard in range(num_shards):
            share = ExpertShare(tensor=shard, tensors=num_shards)
            held = {
                name: share.tensor_slice(name.split(".")[-1], values.shape).of(values)
                for name, values in tensors.items()
            }
            change(shard, held)
            file = ExpertFile(*EXPERT, 9 + shard, "0" * 32, "1" * 32, shard=(shard, num_shards))
            (folder / file.name).write_bytes(file.encode(held))

    def verify(self, name):
        self.verified.append(name)
        return self.folder / name

    def require_size(self, name):
        return self.folder / name


@pytest.mark.parametrize("with_moments", [True, False])
@pytest.mark.parametrize("num_shards", [1, 2])
def test_the_shards_of_all_ranks_make_the_whole_expert(tmp_path, num_shards, with_moments):
    tensors = whole_tensors(with_moments)
    files = Files(tmp_path, tensors, num_shards)

    expert = ExpertTensors(files, *EXPERT, num_shards, SHAPES)

    assert sorted(expert.names) == sorted(tensors)
    for name in expert.names:
        np.testing.assert_array_equal(expert.read(name), tensors[name])
        assert expert.read(name).dtype == np.float32
    assert expert.step_count == 9
    assert [header.shard for header in expert.headers] == [(shard, num_shards) for shard in range(num_shards)]


@pytest.mark.parametrize("verify", [True, False])
def test_files_are_compared_with_the_manifest_unless_they_have_been(tmp_path, verify):
    files = Files(tmp_path, whole_tensors(), 2)

    ExpertTensors(files, *EXPERT, 2, SHAPES, verify)
    assert len(files.verified) == (2 if verify else 0)

    ExpertTensors(files, *EXPERT, 2, SHAPES)
    assert len(files.verified) == (4 if verify else 2)


def in_the_second(change):
    return lambda shard, tensors: change(tensors) if shard == 1 else None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("up"), r"up is missing, the model needs float32 of shape \[4, 3\]"),
        (
            lambda tensors: tensors.pop("adam_v.down"),
            r"adam_v\.down is missing, the model needs float32 of shape \[3, 4\]",
        ),
        (
            lambda tensors: tensors.update(up=tensors["up"].T.copy()),
            r"up is float32 of shape \[3, 4\], the model needs float32 of shape \[4, 3\]",
        ),
        (
            lambda tensors: tensors.update(up=tensors["up"].astype(np.float16)),
            r"up is float16 of shape \[4, 3\], the model needs float32 of shape \[4, 3\]",
        ),
    ],
)
def test_a_file_whose_tensors_do_not_fit_is_named(tmp_path, change, message):
    files = Files(tmp_path, whole_tensors(), 2, in_the_second(change))

    with pytest.raises(CheckpointError, match=rf"rre_01\.zh\.003\.1_of_2\.safetensors: {message}"):
        ExpertTensors(files, *EXPERT, 2, SHAPES)


@pytest.mark.parametrize("name", ["gate", "adam_m.gate"])
def test_an_unknown_tensor_is_named(tmp_path, name):
    files = Files(tmp_path, whole_tensors() | {name: np.zeros((4, 6), np.float32)})

    with pytest.raises(CheckpointError, match=f"003.safetensors has the unknown tensor '{name}'"):
        ExpertTensors(files, *EXPERT, 1, SHAPES)


def test_a_file_of_something_else_is_refused(tmp_path):
    files = Files(tmp_path, whole_tensors())
    names = [path.name for path in (tmp_path / "experts").iterdir()]
    (tmp_path / "experts" / names[0]).write_bytes(b"something else")

    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        ExpertTensors(files, *EXPERT, 1, SHAPES)
