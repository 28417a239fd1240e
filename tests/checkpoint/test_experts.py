"""Expert files: equal experts are equal bytes, in every version; headers of other versions are refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindpangu.checkpoint.experts import ExpertFile, expert_file_name, shards_of_experts
from mindpangu.errors import CheckpointError

EXPERT = ExpertFile(layer=1, domain="zh", index=3, step_count=9, table="t", tokenizer="k")


def test_an_experts_bytes_do_not_change_between_versions():
    """Checkpoints share the files of unchanged experts, and copies are compared by their hashes."""
    data = EXPERT.encode({"up": np.arange(6, dtype=np.float32).reshape(2, 3)})

    keys = list(json.loads(EXPERT.metadata["expert"]))
    assert keys == ["domain", "format_version", "index", "layer", "step_count", "table", "tokenizer"]
    assert hashlib.sha256(data).hexdigest()[:16] == "90c5908767d42c00"


@pytest.mark.parametrize("version", [0, 2])
def test_a_header_of_another_version_is_refused(version):
    header = replace(EXPERT, format_version=version, table="0" * 32, tokenizer="0" * 32)
    with pytest.raises(CheckpointError, match="format"):
        ExpertFile.from_metadata(Path("expert"), header.metadata)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "expert is missing"),
        ({"other": "{}"}, "expert is missing"),
        ({"expert": "{"}, "it is not JSON"),
        ({"expert": "[]"}, "expert is .*; allowed: an object"),
        ({"expert": "{}"}, "expert.layer is missing"),
    ],
)
def test_a_file_that_is_not_an_experts_is_refused(metadata, message):
    with pytest.raises(CheckpointError, match=f"expert_file has no valid expert header: {message}"):
        ExpertFile.from_metadata(Path("expert_file"), metadata)


@pytest.mark.parametrize(
    ("shard", "allowed"),
    [((0, 1), True), ((65535, 65536), True), ((0, 0), False), ((0, 65537), False), ((-1, 2), False)],
)
def test_a_header_names_one_of_at_most_65536_shards(shard, allowed):
    header = replace(EXPERT, shard=shard, table="0" * 32, tokenizer="0" * 32)

    if allowed:
        assert ExpertFile.from_metadata(Path("expert"), header.metadata) == header
    else:
        with pytest.raises(CheckpointError, match=r"expert\.part\[[01]\] is "):
            ExpertFile.from_metadata(Path("expert"), header.metadata)


def test_shards_are_counted_for_each_expert():
    files = [expert_file_name(0, "zh", 1, (shard, 2)) for shard in range(2)]
    files += [expert_file_name(12, "en", 65535), "config.yaml", "experts/rre_00.zh.000.txt"]

    assert shards_of_experts(files) == {(0, "zh", 1): 2, (12, "en", 65535): 1}
