"""Files of a round: whatever is cut off or altered is refused with one clear error."""

import numpy as np
import pytest

from mindpangu.errors import TrainingError
from mindpangu.tiny.rounds.files import BatchLosses, RoundSample

FILES = {
    "losses": BatchLosses(1, "frozen", "ab" * 16, 5, np.arange(5.0)),
    "sample": RoundSample(
        round=2,
        settings={"--rate": 0.5},
        losses="ab" * 16,
        checkpoint="cd" * 16,
        steps_before=12,
        begins_at={"step": 12},
        num_batches=12,
        batches=np.array([1, 3]),
        states=[{"step": 1, "cursor": 2}, {"step": 3, "cursor": 5}],
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_read_as_it_was_written(kind, tmp_path):
    FILES[kind].save(tmp_path / "file")
    found = type(FILES[kind]).load(tmp_path / "file")
    assert found.digest == FILES[kind].digest
    assert found._header() == FILES[kind]._header()
    if kind == "sample":
        assert found.states == FILES[kind].states


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_cut_off_or_has_one_wrong_bit_is_refused(kind, tmp_path):
    FILES[kind].save(tmp_path / "whole")
    whole, path = (tmp_path / "whole").read_bytes(), tmp_path / "file"
    altered = [
        whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :] for place in range(len(whole))
    ]
    for content in [*altered, *(whole[:size] for size in range(0, len(whole), 5))]:
        path.write_bytes(content)
        with pytest.raises(TrainingError, match=r"is not a whole file|was altered|has format"):
            type(FILES[kind]).load(path)
