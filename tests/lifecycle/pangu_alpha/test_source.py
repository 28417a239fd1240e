"""Sets with one file per rank are merged exactly, by the rules of PanGu-α's published strategy files."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import public_format
import pytest

from mindpangu.config import load_config
from mindpangu.errors import CheckpointError
from mindpangu.lifecycle.pangu_alpha.source import PanguAlphaSource
from mindpangu.lifecycle.pangu_alpha.strategy import Layout, owners, read_strategy
from mindpangu.lifecycle.pangu_alpha.weights import (
    OLD_NAMES,
    POSITION_EMBEDDING,
    QUERY_EMBEDDING,
    WORD_EMBEDDING,
    weights_of,
)

PROJECT = Path(__file__).resolve().parents[3]
SIZES = {"layers": 3, "hidden": 16, "inner": 64, "vocabulary": 40, "positions": 8}
TABLES = {
    "backbone.word_embedding.embedding_table": "word_embedding.npy",
    "backbone.position_embedding.embedding_table": "position_embedding.npy",
    "backbone.top_query_embedding.embedding_table": "top_query_embedding.npy",
}


@pytest.fixture(scope="module")
def shards(real_strategy, tmp_path_factory):
    """(folder with filerted_0.ckpt … filerted_7.ckpt, strategy file, whole weights by their old names)."""
    folder = tmp_path_factory.mktemp("shards")
    weights = public_format.old_names(public_format.random_weights(**SIZES))
    strategy = folder.parent / "scaled_strategy.ckpt"
    rules = public_format.scaled_strategy(real_strategy, strategy, SIZES["layers"])
    assert set(rules) == set(weights)
    slices = {name: public_format.slices_of(values, rules[name]) for name, values in weights.items()}
    for rank in range(8):
        public_format.save(folder / f"filerted_{rank}.ckpt", {name: each[rank] for name, each in slices.items()})
    return folder, strategy, weights


@pytest.fixture
def copy(shards, tmp_path):
    """A copy of the set that tests may damage."""
    shutil.copytree(shards[0], tmp_path / "set")
    for path in (tmp_path / "set").iterdir():
        path.chmod(0o644)
    return tmp_path / "set", shards[1]


def assert_whole(source, weights):
    assert source.names == {OLD_NAMES.get(name, name) for name in weights}
    for name, values in weights.items():
        assert source.shape(OLD_NAMES.get(name, name)) == values.shape
        np.testing.assert_array_equal(source.read(OLD_NAMES.get(name, name)), values, err_msg=name)


def test_a_set_is_merged_exactly(shards):
    folder, strategy, weights = shards
    assert_whole(PanguAlphaSource(folder, strategy), weights)


def test_a_set_is_merged_as_mindspore_does(shards, tmp_path):
    import mindspore as ms

    folder, strategy, weights = shards
    for rank in range(8):
        (tmp_path / "set" / f"rank_{rank}").mkdir(parents=True)
        (tmp_path / "set" / f"rank_{rank}" / "model.ckpt").symlink_to(folder / f"filerted_{rank}.ckpt")
    ms.transform_checkpoints(str(tmp_path / "set"), str(tmp_path / "merged"), "merged", str(strategy), None)
    merged_by_mindspore = public_format.load(tmp_path / "merged" / "rank_0" / "merged0.ckpt")
    assert_whole(PanguAlphaSource(tmp_path / "set", strategy), merged_by_mindspore)
    assert set(merged_by_mindspore) == set(weights)


def test_tables_next_to_a_set_are_read(copy, shards):
    folder, strategy = copy
    weights = dict(shards[2])
    for rank in range(8):
        tensors = public_format.load(folder / f"filerted_{rank}.ckpt")
        kept = {name: values for name, values in tensors.items() if name not in TABLES}
        public_format.save(folder / f"filerted_{rank}.ckpt", kept)

    source = PanguAlphaSource(folder, strategy)

    assert source.names.isdisjoint({WORD_EMBEDDING, POSITION_EMBEDDING, QUERY_EMBEDDING})

    for name, file in TABLES.items():
        np.save(folder / file, weights[name])
    assert_whole(PanguAlphaSource(folder, strategy), weights)


def test_the_published_strategies_are_of_the_published_models(real_strategy):
    recipe, layers = ("2.6b", 32) if "2.6B" in real_strategy.name else ("13b", 40)
    config = load_config(PROJECT / "recipes" / f"pangu_alpha_{recipe}.yaml")
    assert config.model.num_layers == layers
    weights = {weight.theirs: weight.their_shape for weight in weights_of(config)}
    layouts = {OLD_NAMES.get(name, name): layout for name, layout in read_strategy(real_strategy).items()}
    assert set(layouts) == set(weights)
    for layout, shape in {(layouts[name], weights[name]) for name in weights}:
        assert layout.devices == (64, 8)
        parts = [n * (layout.num_shards if axis == 0 else 1) for axis, n in enumerate(layout.splits)]
        assert not any(size % n for size, n in zip(shape, parts, strict=True))
        slice_shape = tuple(size // n for size, n in zip(shape, parts, strict=True))
        assert layout.whole_shape(slice_shape) == shape
        covered = np.zeros(parts, int)
        for _, position in layout.slices(slice_shape):
            covered[tuple(each.start // size for each, size in zip(position, slice_shape, strict=True))] += 1
        assert (covered == 1).all()
    # each rank has a 512th of nearly everything but tables and norms, which is why the releases are no larger
    whole = {name for name, layout in layouts.items() if layout.num_shards == 1}
    assert whole == {name for name in weights if re.search(r"embedding|layernorm|projection\.bias", name)}
    divided = [layout for name, layout in layouts.items() if name not in whole]
    assert {layout.num_shards * math.prod(layout.splits) for layout in divided} == {512}


def test_a_layout_has_the_slices_computed_by_hand():
    layout = Layout(devices=(2, 3, 2), axes=(-1, 1))  # replicas × columns × replicas
    assert (layout.num_ranks, layout.splits) == (12, (1, 3))
    assert layout.index(9) == ((0, 1), 0)
    assert owners(layout) == {((0, 0), 0): 0, ((0, 1), 0): 2, ((0, 2), 0): 4}

    sharded = Layout(devices=(2, 2), axes=(1, -1), shard_step=2, num_shards=2)
    assert [sharded.index(rank) for rank in range(4)] == [((0, 0), 0), ((1, 0), 0), ((0, 0), 1), ((1, 0), 1)]

    starts = {rank: position[0].start for rank, position in sharded.slices((3, 5))}
    assert starts == {0: 0, 2: 3, 1: 6, 3: 9}  # optimizer shards are neighbours within a slice of the model
    with pytest.raises(ValueError, match="lack 2 slices"):
        owners(Layout(devices=(2, 2), axes=(1, -1), shard_step=1, num_shards=2))


def test_a_missing_file_is_named(copy):
    folder, strategy = copy
    (folder / "filerted_3.ckpt").unlink()

    with pytest.raises(CheckpointError, match=r"lacks the file of rank 3 \(1 are missing\)"):
        PanguAlphaSource(folder, strategy)

    for rank in (4, 5, 6, 7):
        (folder / f"filerted_{rank}.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"scaled_strategy.ckpt is for 8 ranks, but the set in .* has 3 files"):
        PanguAlphaSource(folder, strategy)


def test_files_that_are_not_of_the_set_are_named(copy):
    folder, strategy = copy
    tensors = public_format.load(folder / "filerted_5.ckpt")
    name = "backbone.blocks.0.output.mapping.weight"
    public_format.save(folder / "filerted_5.ckpt", {each: tensors[each] for each in tensors if each != name})

    with pytest.raises(CheckpointError, match=rf"filerted_5.ckpt has no tensor {name}, which .*filerted_0.ckpt has"):
        PanguAlphaSource(folder, strategy)

    public_format.save(folder / "filerted_5.ckpt", tensors | {name: tensors[name][:, :3]})
    with pytest.raises(
        CheckpointError, match=rf"filerted_5.ckpt: {name} is float32 \[4, 3\], in the other .*\[4, 32\]"
    ):
        PanguAlphaSource(folder, strategy).read(name)

    (folder / "other.ckpt").write_bytes((folder / "filerted_0.ckpt").read_bytes())
    with pytest.raises(CheckpointError, match=r"other.ckpt has no rank in its name"):
        PanguAlphaSource(folder, strategy)

    (folder / "other.ckpt").rename(folder / "again_5.ckpt")
    with pytest.raises(CheckpointError, match=r"again_5.ckpt and .*filerted_5.ckpt both belong to rank 5"):
        PanguAlphaSource(folder, strategy)


def test_a_strategy_that_does_not_fit_is_refused(shards, tmp_path):
    folder, strategy, _ = shards
    from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

    with pytest.raises(CheckpointError, match=r"has 8 .ckpt files; give the strategy file"):
        PanguAlphaSource(folder, None)
    with pytest.raises(CheckpointError, match=r"filerted_0.ckpt is one file; the strategy"):
        PanguAlphaSource(folder / "filerted_0.ckpt", strategy)
    with pytest.raises(CheckpointError, match=r"none.ckpt cannot be read"):
        PanguAlphaSource(folder, tmp_path / "none.ckpt")
    for content in (strategy.read_bytes()[:-3], (folder / "filerted_0.ckpt").read_bytes()):
        (tmp_path / "damaged.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged.ckpt is not a strategy file of MindSpore"):
            PanguAlphaSource(folder, tmp_path / "damaged.ckpt")

    def rename(item):
        item.param_name = "backbone.other"

    def set_first(numbers, value):
        numbers[0] = value

    changes = {
        r"which the strategy file does not name": rename,
        r"slices differ in size": lambda item: item.parallel_layouts.param_split_shape[0].dim.extend([3, 5]),
        r"names axes that .* \[4, 2\] do not have": lambda item: set_first(item.parallel_layouts.tensor_map[0].dim, 2),
        r"different numbers of ranks \(8, 16\)": lambda item: set_first(item.parallel_layouts.dev_matrix[0].dim, 8),
        r"have 1 axes, the strategy 2": lambda item: item.parallel_layouts.tensor_map[0].dim.append(-1),
    }
    for message, change in changes.items():
        changed = ParallelStrategyMap()
        changed.ParseFromString(strategy.read_bytes())
        layouts = changed.parallel_layout_item
        change(layouts[[item.param_name for item in layouts].index("backbone.layernorm.beta")])
        (tmp_path / "changed.ckpt").write_bytes(changed.SerializeToString())
        with pytest.raises(CheckpointError, match=message):
            PanguAlphaSource(folder, tmp_path / "changed.ckpt").read("backbone.layernorm.beta")


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has neither .ckpt files nor folders rank_0"):
        PanguAlphaSource(tmp_path, None)
    with pytest.raises(CheckpointError, match=r"none does not exist"):
        PanguAlphaSource(tmp_path / "none", None)


@pytest.mark.slow
def test_a_set_of_512_files_with_the_published_strategy_itself(real_strategy, tmp_path):
    sizes = SIZES | {"hidden": 512, "inner": 2048}
    weights = public_format.old_names(public_format.random_weights(**sizes))
    rules = public_format.scaled_strategy(real_strategy, tmp_path / "strategy.ckpt", sizes["layers"], devices=(64, 8))
    slices = {name: public_format.slices_of(values, rules[name], (64, 8)) for name, values in weights.items()}
    (tmp_path / "set").mkdir()
    for rank in range(512):
        of_rank = {name: each[rank] for name, each in slices.items() if name not in TABLES}
        public_format.save(tmp_path / "set" / f"filerted_{rank}.ckpt", of_rank)

    for name, file in TABLES.items():
        np.save(tmp_path / "set" / file, weights[name])

    assert_whole(PanguAlphaSource(tmp_path / "set", real_strategy), weights)
