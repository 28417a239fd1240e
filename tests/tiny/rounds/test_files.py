"""Files of a round: read as they were written, and refused if altered."""

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
        begins_at={"samples_taken": [6, 6]},
        num_batches=12,
        batches=np.array([1, 3]),
        states=[{"samples_taken": [1, 2]}, {"samples_taken": [3, 5]}],
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_read_as_it_was_written(kind, tmp_path):
    written = FILES[kind]

    written.save(tmp_path / "file")
    read = type(written).load(tmp_path / "file")

    assert read.digest == written.digest
    assert read._header() == written._header()
    if kind == "sample":
        assert read.states == written.states


@pytest.mark.parametrize("kind", FILES)
def test_an_altered_file_is_refused_with_the_remedy(kind, tmp_path):
    path = tmp_path / "file"
    FILES[kind].save(path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    with pytest.raises(TrainingError, match=rf"file was altered.*{FILES[kind].remedy}"):
        type(FILES[kind]).load(path)
