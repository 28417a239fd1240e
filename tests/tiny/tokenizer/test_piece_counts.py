"""Documents, their split, and counts of pieces."""

import numpy as np
import pytest

from mindpangu.config import load_config
from mindpangu.data import CorpusReader, split_corpus
from mindpangu.domains import build_domains
from mindpangu.errors import DataError
from mindpangu.tiny.tokenizer.documents import FileDocuments, RunDocuments, Split
from mindpangu.tiny.tokenizer.piece_counts import PieceCounts, count_pieces
from mindpangu.tokenizer import Tokenizer


@pytest.fixture
def config(tiny_overrides):
    return load_config(None, tiny_overrides)


@pytest.fixture
def tokenizer(tiny_overrides):
    return Tokenizer.load(f"{tiny_overrides['training.output_dir']}/prepared/tokenizer/main.model")


def test_the_split_matches_that_of_a_training(config, tiny_corpus):
    reader = CorpusReader(config, build_domains(config))
    expected = split_corpus(reader)
    heldout = [expected.side_of(record) == "heldout" for record in reader]
    for documents in (RunDocuments(config), FileDocuments([str(tiny_corpus)])):
        split = Split.draw(documents, config.data.heldout_fraction, config.data.seed)

        assert [split.is_heldout(document) for document in documents] == heldout
        assert documents.bytes_read == documents.total_bytes == tiny_corpus.stat().st_size


def test_counts_match_the_texts(config, tokenizer, tiny_corpus):
    documents = RunDocuments(config)
    split = Split.draw(documents, 0.2, 0)

    counts = count_pieces(documents, split, tokenizer)

    for side, counts_V, num_bytes in (
        (False, counts.train_V, counts.train_bytes),
        (True, counts.heldout_V, counts.heldout_bytes),
    ):
        texts = [text for document in documents if split.is_heldout(document) == side for text in document.texts]
        ids = [index for text in texts for index in tokenizer.encode(text)]
        np.testing.assert_array_equal(counts_V, np.bincount(ids, minlength=tokenizer.vocab_size))
        assert num_bytes == sum(len(text.encode()) for text in texts) > 0


def test_saved_counts_know_their_tokenizer_text_and_split(config, tokenizer, tiny_corpus, tmp_path):
    documents = RunDocuments(config)
    path = tmp_path / "counts.safetensors"
    split = Split.draw(documents, 0.2, 0)
    counts = count_pieces(documents, split, tokenizer)

    counts.save(path)
    loaded = PieceCounts.load(path)

    np.testing.assert_array_equal(loaded.train_V, counts.train_V)
    np.testing.assert_array_equal(loaded.heldout_V, counts.heldout_V)
    assert (loaded.train_bytes, loaded.text) == (counts.train_bytes, counts.text)
    assert loaded.matches(tokenizer, documents, split)
    assert not loaded.matches(tokenizer, documents, Split.draw(documents, 0.3, 0))
    assert not loaded.matches(tokenizer, FileDocuments([str(tiny_corpus)]), split)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_damaged_counts_are_refused(config, tokenizer, tmp_path):
    documents = RunDocuments(config)
    path = tmp_path / "counts.safetensors"
    count_pieces(documents, Split.draw(documents, 0.2, 0), tokenizer).save(path)
    data = path.read_bytes()

    path.write_bytes(data[:-8])
    with pytest.raises(
        DataError, match=r"is not a complete file of piece counts: .*; choose another --counts, or remove it"
    ):
        PieceCounts.load(path)
    path.write_bytes(data[:-1] + b"!")
    with pytest.raises(DataError, match="was altered"):
        PieceCounts.load(path)
    with pytest.raises(DataError, match="is not a complete file"):
        PieceCounts.load(tmp_path / "absent")


def test_plain_text_is_split_at_blank_lines(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("one\ntwo\n\n \nthree\n" + "x" * 70_000 + "\nfour", "utf-8")

    documents = FileDocuments([str(path)])

    assert [document.texts[0][:8] for document in documents] == ["one\ntwo\n", "three\nxx", "four"]
    assert len({document.source_document for document in documents}) == 3
    assert documents.bytes_read == documents.total_bytes


def test_records_need_no_domain_and_yield_the_named_fields(tmp_path):
    path = tmp_path / "any.jsonl"
    path.write_text('{"title": "a", "body": "b", "id": "c"}\n\n{"body": "d"}\n', "utf-8")

    texts = [document.texts for document in FileDocuments([str(path)], ("body", "title"))]

    assert texts == [("b", "a"), ("d",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"title": "a"}', r"1: no text in the fields text, zh, en; this record has title.*--fields"),
        (b"[1]", "a JSON list, not an object"),
        (b"{", "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
    ],
)
def test_unreadable_text_is_named(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)

    with pytest.raises(DataError, match=message):
        list(FileDocuments([str(path)]))


def test_a_single_document_cannot_be_split(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("one\n")
    with pytest.raises(DataError, match=r"has 1 documents, and none can be held out"):
        Split.draw(FileDocuments([str(path)]), 0.05, 0)

    path.write_text("one\n\ntwo\n")
    split = Split.draw(FileDocuments([str(path)]), 0.05, 0)

    assert sum(map(split.is_heldout, FileDocuments([str(path)]))) == 1
