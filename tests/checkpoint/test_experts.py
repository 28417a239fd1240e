"""Expert files: equal experts are equal bytes, in every version; headers of other versions are refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindpangu.checkpoint.experts import ExpertFile
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
