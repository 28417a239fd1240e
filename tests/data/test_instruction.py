"""Instruction records: the document of each task, the tokens that count, and the padded sample."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest

from mindpangu.config.schema import RoutingConfig
from mindpangu.data import (
    HELDOUT,
    TRAIN,
    CorpusReader,
    Loader,
    TokenShards,
    encode_prompt,
    first_answer,
    heldout_batches,
    prompt_parts,
    split_corpus,
    write_shards,
)
from mindpangu.data.instruction import encode_samples, instruction_parts, shorten
from mindpangu.data.route_plan import plan_routes
from mindpangu.domains import Domain, build_domains
from mindpangu.errors import DataError
from mindpangu.routing import RoutingTable

LENGTH = 24  # model.seq_length

# (domain, record, its document: control tokens and texts, those that count in a nested list)
DOCUMENTS = [
    (
        "zh",
        {"task": "dialogue", "turns": ["你", "好", "世", "界"]},
        ["<cn>", "问：你\n答：", ["好", "<eot>"], "\n问：世\n答：", ["界", "<eot>"]],
    ),
    (
        "en",
        {"task": "dialogue", "turns": ["word1", "word2"]},
        ["<en>", "Question: word1\nAnswer: ", ["word2", "<eot>"]],
    ),
    ("zh", {"task": "qa", "question": "你", "answer": "好"}, ["<cn>", "问：你\n答：", ["好", "<eot>"]]),
    (
        "en",
        {"task": "qa", "question": "word1", "context": "word3", "answer": "word2"},
        ["<en>", "word3\nQuestion: word1\nAnswer: ", ["word2", "<eot>"]],
    ),
    (
        "bilingual",
        {"task": "translation", "from": "zh", "to": "en", "text": "世界", "translation": "word4"},
        ["<cn>", "世界", "<en>", ["word4", "<eot>"]],
    ),
    (
        "bilingual",
        {"task": "translation", "from": "en", "to": "zh", "text": "word4", "translation": "世界"},
        ["<en>", "word4", "<cn>", ["世界", "<eot>"]],
    ),
    (
        "code",
        {"task": "code", "lang": "java", "instruction": "word5", "answer": "f()"},
        ["<java>", "Question: word5\nAnswer:\n", ["f()", "<eot>"]],
    ),
    (
        "code",
        {"task": "code", "instruction": "word5", "answer": "f()"},
        ["<python>", "Question: word5\nAnswer:\n", ["f()", "<eot>"]],
    ),
]


@pytest.fixture(scope="module")
def domains(make_config):
    return {domain.name: domain for domain in build_domains(make_config())}


def encoded(document, tokenizer):
    """Returns (ids, 1 where an id counts) of a document in the notation of DOCUMENTS."""
    ids = []
    counted = []
    for part in document:
        for piece in part if isinstance(part, list) else [part]:
            new = [tokenizer.control_id(piece)] if piece.startswith("<") else tokenizer.encode(piece)
            ids += new
            counted += [int(isinstance(part, list))] * len(new)
    return ids, counted


@pytest.mark.parametrize(("name", "record", "document"), DOCUMENTS)
def test_a_record_becomes_a_padded_sample_with_a_mask(domains, tiny_tokenizer, name, record, document):
    ids, counted = encoded(document, tiny_tokenizer)
    parts = instruction_parts(domains[name], record)

    ((padded, padded_mask, shortened),) = encode_samples([parts], tiny_tokenizer, len(ids) + 5)
    ((exact, exact_mask, exact_shortened),) = encode_samples([parts], tiny_tokenizer, len(ids) - 1)

    assert padded.tolist() == ids + [tiny_tokenizer.pad_id] * 6
    assert padded_mask.tolist() == counted + [0] * 6
    assert not shortened
    assert (exact.tolist(), exact_mask.tolist(), exact_shortened) == (ids, counted, False)


@pytest.mark.parametrize(("name", "record", "document"), DOCUMENTS)
def test_a_prompt_is_everything_before_the_last_answer(domains, tiny_tokenizer, name, record, document):
    unanswered = {key: value for key, value in record.items() if key not in ("answer", "translation")}
    if "turns" in record:
        unanswered["turns"] = record["turns"][:-1]
    ids, _ = encoded(document[:-1], tiny_tokenizer)

    parts = prompt_parts(domains[name], unanswered)

    assert encode_prompt(parts, tiny_tokenizer, 1000) == ids
    assert encode_prompt(parts, tiny_tokenizer, 3) == [ids[0], *ids[-2:]]


def test_a_long_document_loses_the_start_of_its_prompt_then_the_end_of_its_answer(domains, tiny_tokenizer):
    def sample(question, answer):
        record = {"task": "qa", "question": "q" * question, "answer": "a" * answer}
        ids, counted = encoded(
            ["<en>", f"Question: {record['question']}\nAnswer: ", [record["answer"], "<eot>"]], tiny_tokenizer
        )
        ((encoded_ids, mask, shortened),) = encode_samples(
            [instruction_parts(domains["en"], record)], tiny_tokenizer, LENGTH
        )
        assert shortened
        return ids, counted.index(1), encoded_ids.tolist(), mask.tolist()

    size = LENGTH + 1
    half = size // 2

    # a long prompt: the answer fits after a shorter one
    ids, prompt, encoded_ids, mask = sample(question=60, answer=4)
    answer_length = len(ids) - prompt
    assert encoded_ids == [ids[0], *ids[prompt - (size - answer_length) + 1 : prompt], *ids[prompt:]]
    assert mask == [0] * (size - answer_length) + [1] * answer_length

    # both are long: both are cut
    ids, prompt, encoded_ids, mask = sample(question=60, answer=60)
    assert encoded_ids == [ids[0], *ids[prompt - half + 1 : prompt], *ids[prompt : prompt + size - half]]
    assert mask == [0] * half + [1] * (size - half)

    # a long answer: only its end is cut if the prompt takes less than half of the sample
    ids, prompt, encoded_ids, mask = sample(question=1, answer=90)
    kept = min(prompt, half)
    assert mask == [0] * kept + [1] * (size - kept)
    assert encoded_ids[kept:] == ids[prompt : prompt + size - kept]


def test_a_domain_may_have_no_control_token(tiny_tokenizer):
    domain = Domain("bare", "monolingual", ())
    ids, _ = encoded(["问：word1\n答：", ["word2", "<eot>"]], tiny_tokenizer)

    parts = instruction_parts(domain, {"task": "qa", "question": "word1", "answer": "word2"})
    ((encoded_ids, _, _),) = encode_samples([parts], tiny_tokenizer, 100)

    assert encoded_ids[: len(ids)].tolist() == ids


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("zh", {}, '"task" is null; known: dialogue, qa, translation, code'),
        ("zh", {"task": ["qa"]}, '"task" is a list with 1 entry; known: dialogue'),
        ("zh", {"task": "dialogue"}, 'no "turns"'),
        ("zh", {"task": "dialogue", "turns": []}, 'no "turns"'),
        ("zh", {"task": "dialogue", "turns": "你"}, '"turns" is not a list'),
        ("zh", {"task": "dialogue", "turns": ["你"]}, '"turns" has 1 texts; every second one must be a reply'),
        ("zh", {"task": "dialogue", "turns": ["你", 3]}, '"turns" has type int, expected a string'),
        ("zh", {"task": "qa", "question": "你"}, 'no "answer"'),
        ("zh", {"task": "qa", "question": " ", "answer": "好"}, '"question" is empty'),
        (
            "zh",
            {"task": "translation", "from": "zh", "to": "en", "text": "a", "translation": "b"},
            "\"to\" is 'en', but domain zh has the control tokens <cn>",
        ),
        (
            "bare",
            {"task": "translation", "from": "fr", "to": "en", "text": "a", "translation": "b"},
            "\"from\" is 'fr', but domain bare has the control tokens none",
        ),
        ("code", {"task": "code", "lang": "c", "instruction": "a", "answer": "b"}, "unknown \"lang\" 'c'"),
    ],
)
def test_unusable_records_are_refused_with_a_reason(domains, name, record, reason):
    domain = domains.get(name, Domain("bare", "monolingual", ()))

    with pytest.raises(ValueError, match=re.escape(reason)):
        instruction_parts(domain, record)


@pytest.mark.parametrize("turns", [["你", "好"], ["你", "好", "世", "界"]])
def test_a_prompt_that_ends_with_a_reply_is_refused(domains, turns):
    with pytest.raises(ValueError, match=f'"turns" has {len(turns)} texts; the last one must not be a reply'):
        prompt_parts(domains["zh"], {"task": "dialogue", "turns": turns})


def test_a_translation_names_its_languages_or_control_tokens():
    domain = Domain("french", "bilingual", ("<fr>", "<en>"))
    record = {"task": "translation", "from": "fr", "to": "en", "text": "mot", "translation": "word"}

    assert instruction_parts(domain, record) == (("<fr>", "mot"), ("<en>", "word"))
    assert prompt_parts(domain, record) == (("<fr>", "mot"), ("<en>", ""))


@pytest.mark.parametrize(("name", "record", "document"), DOCUMENTS)
def test_the_first_prompt_and_answer_of_a_sample(domains, tiny_tokenizer, name, record, document):
    parts = instruction_parts(domains[name], record)
    index = next(index for index, part in enumerate(document) if isinstance(part, list))
    prompt, _ = encoded(document[:index], tiny_tokenizer)
    answer, _ = encoded([document[index]], tiny_tokenizer)

    for seq_length in (60, len(encoded(document, tiny_tokenizer)[0]) - 1):  # with padding, and without
        ((ids, counted, _),) = encode_samples([parts], tiny_tokenizer, seq_length)

        assert first_answer(ids, counted) == (tuple(prompt), tuple(answer))


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, [5]), (2, [5, 9]), (3, [5, 8, 9]), (4, [5, 7, 8, 9]), (5, [5, 6, 7, 8, 9])]
)
def test_a_shortened_prompt_keeps_its_first_token_and_the_last_ones(limit, expected):
    assert shorten([5, 6, 7, 8, 9], limit) == expected
    assert shorten([5, 6, 7, 8, 9], limit + 5) == [5, 6, 7, 8, 9]


def test_samples_encode_the_same_together_and_alone(domains, tiny_tokenizer):
    documents = [instruction_parts(domains[name], record) for name, record, _ in DOCUMENTS]

    together = encode_samples(documents, tiny_tokenizer, 30, threads=2)

    for parts, (ids, counted, shortened) in zip(documents, together, strict=True):
        ((alone_ids, alone_counted, alone_shortened),) = encode_samples([parts], tiny_tokenizer, 30)
        assert (ids.dtype, counted.dtype) == (np.int32, np.uint8)
        assert (ids.tolist(), counted.tolist()) == (alone_ids.tolist(), alone_counted.tolist())
        assert shortened == alone_shortened


def test_a_record_one_token_too_long_is_shortened_by_one(domains, tiny_tokenizer):
    parts = instruction_parts(domains["zh"], {"task": "qa", "question": "你好" * 9, "answer": "好"})
    ((whole, whole_mask, _),) = encode_samples([parts], tiny_tokenizer, 200)
    length = int(np.flatnonzero(whole_mask)[-1]) + 1

    ((ids, mask, shortened),) = encode_samples([parts], tiny_tokenizer, length - 2)

    assert shortened
    assert ids.tolist() == [whole[0], *whole[2:length]]
    assert mask.tolist() == [0, *whole_mask[2:length]]


# ---- Shards and batches ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tiny_tokenizer, make_config, write_jsonl, tmp_path_factory):
    """Returns (config, shards, domains) with records of zh and code. The other two domains have the weight 0."""
    folder = tmp_path_factory.mktemp("records")
    records = []
    for doc in range(20):
        ask = {
            "domain": "zh",
            "task": "qa",
            "doc": doc,
            "question": "你好"[: 1 + doc % 2],
            "answer": "世界" * (1 + doc % 3),
        }
        code = {"domain": "code", "task": "code", "doc": doc, "instruction": f"word{doc % 11}", "answer": f"f{doc}(x)"}
        records += [ask, code]
    config = make_config(
        [write_jsonl(folder / "records.jsonl", records)],
        seq_length=LENGTH,
        heldout_fraction=0.2,
        format="instruction",
        eod_reset=True,
        mixture={"bilingual": 0.0, "zh": 1.0, "en": 0.0, "code": 1.0},
    )
    reader = CorpusReader(config, build_domains(config))
    write_shards(folder / "shards", reader, split_corpus(reader), tiny_tokenizer)
    return config, TokenShards.open(folder / "shards", verify=True), build_domains(config)


def check_batch(batch, shards, split):
    """Compares a batch with the shards: targets and mask are as stored, inputs have no padding."""
    pad = shards.pad_id
    for row, (domain, index) in enumerate(batch.sample_ids_B2.tolist()):
        if index < 0:
            assert batch.loss_mask_BS[row].sum() == 0
            continue
        name = shards.domain_names[domain]
        size = LENGTH + 1
        stored = np.array(shards.tokens(name, split)[index * size : (index + 1) * size])
        counted = np.fromfile(shards.folder / f"{name}.{split}.mask.bin", np.uint8)[index * size : (index + 1) * size]
        np.testing.assert_array_equal(batch.targets_BS[row], stored[1:])
        np.testing.assert_array_equal(batch.loss_mask_BS[row], counted[1:])
        text = stored[:-1][stored[:-1] != pad]
        assert (batch.targets_BS[row][batch.loss_mask_BS[row] > 0] != pad).all()
        repeated = np.resize(text, LENGTH)  # repeats the text to fill LENGTH
        np.testing.assert_array_equal(batch.tokens_BS[row], repeated)
        np.testing.assert_array_equal(batch.positions_BS[row], np.arange(LENGTH))


def test_batches_hold_the_records_and_count_their_answers(written):
    config, shards, domains = written
    loader = Loader(shards, domains, config)
    seen = []

    for _ in range(8):
        (batch,) = loader.next_step().micro_batches
        check_batch(batch, shards, TRAIN)
        seen += batch.sample_ids_B2.tolist()

    assert {domain for domain, _ in seen} == {1, 3}
    first_epoch = seen[: 2 * shards.num_documents("zh", TRAIN) // 4 * 4]
    assert len({tuple(each) for each in first_epoch}) == len(first_epoch)


def test_a_loader_of_records_resumes_from_its_state(written):
    config, shards, domains = written
    loader = Loader(shards, domains, config)
    for _ in range(8):
        loader.next_step()
    state = loader.state()
    expected = loader.next_step().micro_batches[0]

    resumed = Loader(shards, domains, config, state).next_step().micro_batches[0]

    np.testing.assert_array_equal(resumed.tokens_BS, expected.tokens_BS)
    np.testing.assert_array_equal(resumed.loss_mask_BS, expected.loss_mask_BS)


def test_heldout_records_come_from_other_documents(written):
    config, shards, _ = written

    for name in ("zh", "code"):
        for batch in heldout_batches(shards, name, config, 4):
            check_batch(batch, shards, HELDOUT)
        size = LENGTH + 1
        train, heldout = (np.array(shards.tokens(name, split)).reshape(-1, size) for split in (TRAIN, HELDOUT))
        assert len(train) + len(heldout) == 20
        assert len(heldout) >= 1
        assert shards.num_documents(name, HELDOUT) == len(heldout)

    with pytest.raises(DataError, match="heldout split of domain 'en' has 0 tokens"):
        next(heldout_batches(shards, "en", config, 4))


def test_padding_activates_no_expert(written):
    config, shards, domains = written
    counts = {domain.name: np.ones(shards.vocab_size, np.int64) for domain in domains}
    # with so many experts, few tokens share one
    many = [Domain(d.name, d.kind, d.control_tokens, num_experts=40) for d in domains]
    table = RoutingTable.build(many, counts, 2, RoutingConfig(assignment="random"))
    (batch,) = Loader(shards, domains, config).next_step().micro_batches

    plan = plan_routes(batch.tokens_BS, batch.domain_of_slot, batch.slot_of_sample_B, many, table)

    domain = batch.domain_of_slot[0]
    stored = [
        shards.samples(domains[domain].name, TRAIN, LENGTH)[index][0][:-1] for _, index in batch.sample_ids_B2.tolist()
    ]
    text = np.concatenate([window[window != shards.pad_id] for window in stored])
    assert len(text) < batch.tokens_BS.size
    for layer in range(2):
        activated = set(np.flatnonzero(plan.counts_LDA[layer, 0]).tolist())
        experts_V = table.array(layer, domains[domain].name)
        assert activated == set(experts_V[text].tolist())
        assert int(experts_V[shards.pad_id]) not in activated


def test_records_for_another_sequence_length_are_refused(written):
    _, shards, _ = written

    assert json.loads((shards.folder / "index.json").read_text())["format_version"] == 2
    with pytest.raises(DataError, match=f"samples of model.seq_length {LENGTH}, not 16"):
        shards.samples("zh", TRAIN, 16)


def test_an_altered_or_missing_mask_is_refused(written, tmp_path):
    _, shards, _ = written
    shutil.copytree(shards.folder, tmp_path / "shards")
    mask = tmp_path / "shards" / "zh.train.mask.bin"

    mask.write_bytes(bytes([1]) * mask.stat().st_size)
    with pytest.raises(DataError, match=r"zh\.train\.mask\.bin was altered"):
        TokenShards.open(tmp_path / "shards", verify=True)

    mask.write_bytes(mask.read_bytes() + bytes(1))
    with pytest.raises(DataError, match=r"zh\.train\.mask\.bin has .* bytes, expected"):
        TokenShards.open(tmp_path / "shards")

    mask.unlink()
    with pytest.raises(DataError, match=r"zh\.train\.mask\.bin is missing"):
        TokenShards.open(tmp_path / "shards")


@pytest.mark.parametrize("value", [1, 2])
def test_a_mask_is_of_zeros_and_ones_though_its_hash_is_right(written, tmp_path, value):
    _, shards, _ = written
    shutil.copytree(shards.folder, tmp_path / "shards")
    mask = tmp_path / "shards" / "zh.train.mask.bin"
    mask.write_bytes(bytes([value]) * mask.stat().st_size)
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    index["files"]["zh"]["train"]["mask_blake2b"] = hashlib.blake2b(mask.read_bytes(), digest_size=16).hexdigest()
    (tmp_path / "shards" / "index.json").write_text(json.dumps(index))

    if value < 2:
        TokenShards.open(tmp_path / "shards", verify=True)
    else:
        with pytest.raises(DataError, match=r"zh\.train\.mask\.bin contains 2; allowed: >= 0 and < 2"):
            TokenShards.open(tmp_path / "shards", verify=True)


def test_token_counts_and_answers_exclude_padding(written):
    _, shards, _ = written
    tokens = np.array(shards.tokens("zh", TRAIN))

    counts_V = shards.token_counts("zh", TRAIN, shards.vocab_size)
    counted, shortened = shards.num_answers("zh", TRAIN)

    assert counts_V[shards.pad_id] == 0
    assert counts_V.sum() == (tokens != shards.pad_id).sum() == len(shards.text_tokens("zh", TRAIN))
    assert counted == np.fromfile(shards.folder / "zh.train.mask.bin", np.uint8).sum()
    assert shortened == 0
    assert shards.token_counts("en", TRAIN, shards.pad_id).tolist() == [0] * shards.pad_id  # a split without records
