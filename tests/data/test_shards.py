"""Token shards: lossless writing, streamed counts, and refusal of missing or damaged files."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest

from mindpangu.config import Config, DomainsConfig, VocabularyConfig
from mindpangu.data import (
    HELDOUT,
    TRAIN,
    CorpusReader,
    TokenShards,
    encode_documents,
    shard_writer,
    split_corpus,
    write_shards,
)
from mindpangu.data import shards as shards_module
from mindpangu.domains import build_domains
from mindpangu.errors import DataError


@pytest.fixture
def copied(tiny_shards, tmp_path):
    """Returns a folder of shards that a test may damage."""
    return shutil.copytree(tiny_shards[0].folder, tmp_path / "shards")


def test_shards_hold_every_document_of_their_split_in_order(
    tmp_path, tiny_records, tiny_tokenizer, make_config, write_jsonl, monkeypatch
):
    monkeypatch.setattr(shard_writer, "_BATCH_BYTES", 500)  # many batches
    config = make_config([write_jsonl(tmp_path / "c.jsonl", tiny_records)], ["code", "zh"], heldout_fraction=0.2)
    reader = CorpusReader(config, build_domains(config))
    split = split_corpus(reader)

    shards = write_shards(tmp_path / "shards", reader, split, tiny_tokenizer)

    assert shards.domain_names == ("zh", "code")
    for domain_id, name in enumerate(shards.domain_names):
        for side in (TRAIN, HELDOUT):
            records = [r for r in reader if r.domain_id == domain_id and split.side_of(r) == side]
            documents = encode_documents([record.parts for record in records], tiny_tokenizer)
            expected = list(itertools.chain.from_iterable(documents))
            tokens = shards.tokens(name, side)
            assert tokens.tolist() == expected
            assert (tokens.dtype, tokens.flags.writeable) == (np.dtype("<u2"), False)
            assert shards.num_tokens(name, side) == len(expected)
            assert shards.num_documents(name, side) == len(records) == expected.count(tiny_tokenizer.eot_id)
            assert shards.text_bytes(name, side) == sum(record.text_bytes for record in records)
    assert (shards.tokenizer_digest, shards.vocab_size) == (tiny_tokenizer.digest, tiny_tokenizer.vocab_size)
    assert (shards.pad_id, shards.eot_id) == (tiny_tokenizer.pad_id, tiny_tokenizer.eot_id)


@pytest.mark.parametrize(
    ("vocab_size", "raised_by", "dtype"), [(80_000, 70_000, "<i4"), (65_537, 65_000, "<i4"), (65_536, 65_000, "<u2")]
)
def test_a_large_vocabulary_is_written_as_int32(
    tmp_path, tiny_records, tiny_tokenizer, make_config, write_jsonl, vocab_size, raised_by, dtype
):
    class LargeTokenizer:
        """The small tokenizer with its ids raised."""

        def __init__(self):
            self.vocab_size = vocab_size
            self.pad_id = 1
            self.eot_id = raised_by + 2
            self.digest = "a" * 32

        def control_id(self, token):
            return raised_by + tiny_tokenizer.control_id(token)

        def encode_batch(self, texts, threads):
            return [[raised_by + i for i in ids] for ids in tiny_tokenizer.encode_batch(texts, threads)]

    config = make_config([write_jsonl(tmp_path / "c.jsonl", tiny_records)], ["en"])
    reader = CorpusReader(config, build_domains(config))

    shards = write_shards(tmp_path / "new" / "shards", reader, split_corpus(reader), LargeTokenizer())

    tokens = shards.tokens("en", TRAIN)
    assert tokens.dtype == np.dtype(dtype)
    assert tokens.min() >= raised_by
    assert tokens[-1] == raised_by + 2
    assert len(shards.token_counts("en", TRAIN, vocab_size)) == vocab_size


def test_text_is_encoded_on_the_cores_that_the_process_may_use(
    tmp_path, tiny_records, tiny_tokenizer, make_config, write_jsonl, monkeypatch
):
    threads_used = []
    encode_batch = tiny_tokenizer.encode_batch
    config = make_config([write_jsonl(tmp_path / "c.jsonl", tiny_records)], ["en"])
    reader = CorpusReader(config, build_domains(config))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 2, 5})
    monkeypatch.setattr(
        tiny_tokenizer,
        "encode_batch",
        lambda texts, threads: threads_used.append(threads) or encode_batch(texts, threads),
    )

    write_shards(tmp_path / "shards", reader, split_corpus(reader), tiny_tokenizer)

    assert threads_used == [3]


def test_streamed_token_counts_equal_a_bincount(tiny_shards, monkeypatch):
    shards = tiny_shards[0]
    tokens = np.array(shards.tokens("bilingual", TRAIN))
    monkeypatch.setattr(shards_module, "_CHUNK_TOKENS", 100)

    counts = shards.token_counts("bilingual", TRAIN, 1000)

    assert (counts.dtype, counts.shape) == (np.int64, (1000,))
    np.testing.assert_array_equal(counts, np.bincount(tokens, minlength=1000))
    with pytest.raises(
        DataError, match=rf"bilingual.train.bin contains token id \d+, outside a vocabulary of {tokens.max()}"
    ):
        shards.token_counts("bilingual", TRAIN, int(tokens.max()))


def test_the_digest_depends_on_the_corpus(
    tmp_path, tiny_records, tiny_tokenizer, make_config, write_jsonl, tiny_shards
):
    def digest(name, records):
        config = make_config([write_jsonl(tmp_path / f"{name}.jsonl", records)], heldout_fraction=0.2)
        reader = CorpusReader(config, build_domains(config))
        return write_shards(tmp_path / name, reader, split_corpus(reader), tiny_tokenizer).digest

    changed = [*tiny_records[:-1], tiny_records[-1] | {"text": "def f39():\n    return 0\n"}]

    assert digest("same", tiny_records) == tiny_shards[0].digest == TokenShards.open(tiny_shards[0].folder).digest
    assert digest("changed", changed) != tiny_shards[0].digest
    assert len(tiny_shards[0].digest) == 32


def test_the_digest_does_not_depend_on_the_order_of_the_keys(copied, tiny_shards):
    index = json.loads((copied / "index.json").read_text())

    (copied / "index.json").write_text(json.dumps(dict(reversed(index.items()))))

    assert TokenShards.open(copied).digest == tiny_shards[0].digest


def test_a_missing_or_truncated_file_is_named_with_its_sizes(copied):
    path = copied / "zh.heldout.bin"
    size = path.stat().st_size

    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=rf"zh.heldout.bin has {size - 2:,} bytes, expected {size:,}; prepare"):
        TokenShards.open(copied)

    path.unlink()
    with pytest.raises(DataError, match=r"zh.heldout.bin is missing"):
        TokenShards.open(copied)


def test_altered_ids_are_found_when_verifying(copied):
    TokenShards.open(copied, verify=True)
    path = copied / "en.train.bin"
    ids = np.fromfile(path, "<u2")
    ids[len(ids) // 2] = 60_000  # outside the vocabulary
    ids.tofile(path)

    shards = TokenShards.open(copied)  # without verify only the size is checked

    with pytest.raises(DataError, match="contains token id 60000"):
        shards.token_counts("en", TRAIN, shards.vocab_size)
    with pytest.raises(DataError, match=r"en.train.bin was altered: its hash is [0-9a-f]+, expected [0-9a-f]+"):
        TokenShards.open(copied, verify=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format_version": 99}', "has format version 99, expected 1"),
        ('{"format_version": 3}', "has format version 3, expected 1"),
        ('{"format_version": 0}', "has format version 0, expected 1"),
        ('{"format_version": 2}', "cannot be read: dtype is missing"),
        ('{"format_version": "1"}', "cannot be read: format_version is '1'; allowed: 1 or 2"),
        ('{"format_version": true}', "cannot be read: format_version is True"),
        ("{}", "cannot be read: format_version is missing"),
        ('{"format_version": 1}', "cannot be read: dtype is missing"),
    ],
)
def test_an_unusable_index_is_named(copied, content, message):
    (copied / "index.json").unlink()
    if content is not None:
        (copied / "index.json").write_text(content)

    with pytest.raises(DataError, match=rf"index.json {message}.*prepare the data again"):
        TokenShards.open(copied)


def change(folder, changes):
    """Changes entries of the index, each named by its keys with dots between. None removes it."""
    index = json.loads((folder / "index.json").read_text())
    for name, value in changes.items():
        *parents, key = name.split(".")
        entry = index
        for parent in parents:
            entry = entry[parent]
        if value is None:
            del entry[key]
        else:
            entry[key] = value
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; allowed: >= 1 and <= 2147483648$"),
        ({"pad_id": -1}, "pad_id is -1; allowed: >= 0 and <= 2147483647$"),
        ({"eot_id": 1 << 31}, "eot_id is 2147483648; allowed: >= 0 and <= 2147483647$"),
        ({"eot_id": 365}, "pad_id is .* and eot_id 365; allowed: < 365"),
        ({"pad_id": 365}, "pad_id is 365 and eot_id .*; allowed: < 365"),
        ({"seq_length": 0}, "seq_length is 0; allowed: >= 1 and <= 2147483648$"),
        ({"files.zh.train.tokens": -1}, r"files.zh.train.tokens is -1; allowed: >= 0 and <= 281474976710656$"),
        ({"files.zh.train.documents": -1}, "files.zh.train.documents is -1; allowed: >= 0"),
        ({"files.zh.train.blake2b": "a"}, "files.zh.train.blake2b is 'a'; allowed: 32 hex digits"),
        ({"files.zh.heldout": None}, "files.zh.heldout is missing"),
        ({"files.code": None}, "domain_names are .*; allowed: the keys of files, each once"),
        ({"domain_names": ["bilingual", "zh", "en"]}, "domain_names are .*; allowed: the keys of files, each once"),
        ({"domain_names": ["bilingual", "zh", "en", "code", "zh"]}, "domain_names are .*; allowed: the keys of files"),
        ({"format_version": 2}, "seq_length is missing"),
        ({"format_version": 2, "seq_length": 8}, "counted, shortened, or mask_blake2b is missing in an entry of files"),
    ],
)
def test_an_index_with_wrong_entries_is_refused(copied, changes, message):
    change(copied, {"vocab_size": 365})
    TokenShards.open(copied)

    change(copied, changes)

    with pytest.raises(DataError, match=r"index\.json cannot be read: ") as refusal:
        TokenShards.open(copied)
    assert re.search(message, str(refusal.value).removesuffix("; prepare the data again (`mindpangu data prepare`)"))


@pytest.mark.parametrize("field", ["counted", "shortened", "mask_blake2b"])
def test_every_entry_of_an_index_of_records_describes_its_mask(copied, field):
    index = json.loads((copied / "index.json").read_text()) | {"format_version": 2, "seq_length": 8}
    for splits in index["files"].values():
        for entry in splits.values():
            entry |= {"counted": 0, "shortened": 0, "mask_blake2b": "0" * 32}
    (copied / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"mask\.bin is missing"):
        TokenShards.open(copied)

    change(copied, {f"files.code.heldout.{field}": None})

    with pytest.raises(DataError, match="counted, shortened, or mask_blake2b is missing in an entry of files"):
        TokenShards.open(copied)


def test_interrupted_writing_leaves_no_index(copied, tiny_tokenizer, make_config, write_jsonl, tiny_records, tmp_path):
    corpus = write_jsonl(tmp_path / "c.jsonl", tiny_records)
    config = make_config([corpus])
    reader = CorpusReader(config, build_domains(config))
    split = split_corpus(reader)
    corpus.write_text(corpus.read_text() + "{}\n")

    with pytest.raises(DataError, match="max_bad_records"):
        write_shards(copied, reader, split, tiny_tokenizer)

    with pytest.raises(DataError, match="there are no token shards"):
        TokenShards.open(copied)


def test_a_vocabulary_with_its_own_tokenizer_is_refused(
    tmp_path, tiny_tokenizer, make_config, write_jsonl, tiny_records
):
    config: Config = make_config([write_jsonl(tmp_path / "c.jsonl", tiny_records)], ["en"])
    vocabulary = VocabularyConfig(name="latin", vocab_size=365, tokenizer="other.model", domains=["en"])
    config = dataclasses.replace(config, domains=DomainsConfig(names=["en"], vocabularies=[vocabulary]))
    reader = CorpusReader(config, build_domains(config))

    with pytest.raises(DataError, match=r"vocabulary 'latin' has the tokenizer other.model"):
        write_shards(tmp_path / "shards", reader, split_corpus(reader), tiny_tokenizer)


def test_the_index_lists_the_properties_of_each_file(tiny_shards):
    index = json.loads((tiny_shards[0].folder / "index.json").read_text())
    assert index["files"]["code"]["train"].keys() == {"tokens", "documents", "text_bytes", "blake2b"}


def forge(folder, name, numbers):
    """Writes a shard with its right size and hash in the index."""
    numbers.tofile(folder / name)
    index = json.loads((folder / "index.json").read_text())
    domain, split = name.split(".")[:2]
    digest = hashlib.blake2b((folder / name).read_bytes(), digest_size=16).hexdigest()
    index["files"][domain][split] |= {"tokens": len(numbers), "blake2b": digest}
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(("dtype", "wrong"), [("<i4", -1), ("<i4", 2**31 - 1), ("<u2", 65_535)])
def test_ids_outside_the_vocabulary_are_refused_even_if_their_hash_is_right(copied, dtype, wrong):
    """They would be counted in an array of billions, or look up rows that do not exist."""
    index = json.loads((copied / "index.json").read_text()) | {"dtype": "int32" if dtype == "<i4" else "uint16"}
    for domain, splits in index["files"].items():
        for split, entry in splits.items():
            ids = np.fromfile(copied / f"{domain}.{split}.bin", "<u2").astype(dtype)
            ids.tofile(copied / f"{domain}.{split}.bin")
            entry["blake2b"] = hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest()
    (copied / "index.json").write_text(json.dumps(index))
    ids = np.fromfile(copied / "en.train.bin", dtype)
    ids[len(ids) // 2] = wrong
    forge(copied, "en.train.bin", ids)
    shards = TokenShards.open(copied)

    with pytest.raises(DataError, match=rf"en\.train\.bin contains {wrong}; allowed: >= 0 and < {shards.vocab_size}"):
        TokenShards.open(copied, verify=True)
    with pytest.raises(DataError, match=rf"en\.train\.bin contains token id {wrong}, outside a vocabulary"):
        shards.token_counts("en", TRAIN, shards.vocab_size)


def test_shards_of_another_tokenizer_are_refused(copied, tiny_tokenizer):
    TokenShards.open(copied).require_tokenizer(tiny_tokenizer)

    change(copied, {"tokenizer_digest": "a" * 32})

    with pytest.raises(DataError, match=rf"made by another tokenizer \(hash a+\) than the .*{tiny_tokenizer.digest}"):
        TokenShards.open(copied).require_tokenizer(tiny_tokenizer)


def test_the_index_must_have_the_vocabulary_size_of_its_tokenizer(copied, tiny_tokenizer):
    index = json.loads((copied / "index.json").read_text())
    (copied / "index.json").write_text(json.dumps(index | {"vocab_size": 1 << 31}))

    with pytest.raises(DataError, match=rf"vocab_size is 2147483648; allowed: {tiny_tokenizer.vocab_size}"):
        TokenShards.open(copied).require_tokenizer(tiny_tokenizer)

    (copied / "index.json").write_text(json.dumps(index | {"pad_id": index["vocab_size"]}))
    with pytest.raises(DataError, match=rf"pad_id is {index['vocab_size']} and eot_id .*; allowed: <"):
        TokenShards.open(copied)
