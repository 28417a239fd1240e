"""Files with a digest: whatever is cut off, altered or of another kind is refused with one clear error."""

from dataclasses import dataclass

import numpy as np
import pytest

from mindpangu.errors import DataError
from mindpangu.tiny.verified_file import VerifiedFile


@dataclass(frozen=True, eq=False)
class Numbers(VerifiedFile):
    kind, format_version, error, remedy = "numbers", "3", DataError, "write it again"

    name: str
    values_N: np.ndarray

    @classmethod
    def _from_content(cls, header, tensors):
        return cls(header["name"], tensors["values"])

    def _header(self):
        return {"name": self.name}

    def _tensors(self):
        return {"values": self.values_N}


class Letters(Numbers):
    kind = "letters"


class NewNumbers(Numbers):
    format_version = "4"


@pytest.fixture
def path(tmp_path):
    Numbers("first", np.arange(5)).save(tmp_path / "file")
    return tmp_path / "file"


def test_a_file_is_read_as_it_was_written(path):
    found = Numbers.load(path)
    assert found.name == "first"
    np.testing.assert_array_equal(found.values_N, np.arange(5))
    assert found.digest == Numbers("first", np.arange(5)).digest
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_digest_is_of_kind_header_and_tensors():
    of = [
        Numbers("first", np.arange(5)),
        Numbers("second", np.arange(5)),
        Numbers("first", np.arange(6)),
        Numbers("first", np.zeros(5, np.int32)),
        Numbers("first", np.zeros(5, np.float32)),
        Numbers("first", np.zeros((5, 1), np.float32)),
        Letters("first", np.arange(5)),
    ]
    assert len({file.digest for file in of}) == len(of)


def test_a_file_that_is_cut_off_or_has_one_wrong_bit_is_refused(path):
    whole = path.read_bytes()
    altered = [
        whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :] for place in range(len(whole))
    ]
    for content in [*altered, *(whole[:size] for size in range(0, len(whole), 5))]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"(not a whole file|altered|format|file of).*write it again"):
            Numbers.load(path)


def test_files_of_another_kind_or_format_are_named(path):
    with pytest.raises(DataError, match="is a file of numbers, not of letters"):
        Letters.load(path)
    with pytest.raises(DataError, match="has format 3 of numbers; this version of mindpangu reads format 4"):
        NewNumbers.load(path)
    with pytest.raises(DataError, match="absent is not a whole file of numbers"):
        Numbers.load(path.with_name("absent"))
