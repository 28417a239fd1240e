"""Verified files: truncated or altered files and files of another kind are refused with one clear error."""

from dataclasses import dataclass

import numpy as np
import pytest

from mindpangu.errors import DataError
from mindpangu.tiny.verified_file import VerifiedFile


@dataclass(frozen=True, eq=False)
class Numbers(VerifiedFile):
    kind = "numbers"
    format_version = "3"
    error = DataError
    remedy = "write it again"

    name: str
    values_J: np.ndarray

    @classmethod
    def _from_content(cls, header, tensors):
        return cls(header["name"], tensors["values"])

    def _header(self):
        return {"name": self.name}

    def _tensors(self):
        return {"values": self.values_J}


class Letters(Numbers):
    kind = "letters"


class NewNumbers(Numbers):
    format_version = "4"


@pytest.fixture
def path(tmp_path):
    Numbers("first", np.arange(5)).save(tmp_path / "file")
    return tmp_path / "file"


def test_a_file_is_read_as_it_was_written(path):
    loaded = Numbers.load(path)

    assert loaded.name == "first"
    np.testing.assert_array_equal(loaded.values_J, np.arange(5))
    assert loaded.digest == Numbers("first", np.arange(5)).digest
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_digest_depends_on_kind_header_and_tensors():
    files = [
        Numbers("first", np.arange(5)),
        Numbers("second", np.arange(5)),
        Numbers("first", np.arange(6)),
        Numbers("first", np.zeros(5, np.int32)),
        Numbers("first", np.zeros(5, np.float32)),
        Numbers("first", np.zeros((5, 1), np.float32)),
        Letters("first", np.arange(5)),
    ]

    assert len({file.digest for file in files}) == len(files)


def test_a_truncated_file_or_a_single_flipped_bit_is_refused(path):
    whole = path.read_bytes()
    altered = [whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in range(len(whole))]
    truncated = [whole[:size] for size in range(0, len(whole), 5)]

    for content in [*altered, *truncated]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"(not a complete file|altered|format|file of).*write it again"):
            Numbers.load(path)


def test_files_of_another_kind_or_format_are_named(path):
    with pytest.raises(DataError, match="is a file of numbers, not of letters"):
        Letters.load(path)

    with pytest.raises(DataError, match="has format 3 of numbers; this version of mindpangu reads format 4"):
        NewNumbers.load(path)

    with pytest.raises(DataError, match="absent is not a complete file of numbers"):
        Numbers.load(path.with_name("absent"))
