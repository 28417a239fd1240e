"""The document format of each kind of domain, and the matching prompts."""

import pytest

from mindpangu.data import document_parts, encode_documents, prompt_ids
from mindpangu.domains import PRESETS
from mindpangu.errors import TokenizerError

DOMAINS = {domain.name: domain for domain in PRESETS["sigma_40"]} | {"alpha": PRESETS["pangu_alpha"][0]}


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("en", {"text": "hi"}, ["<en>", "hi", "<eot>"]),
        ("zh", {"text": "好"}, ["<cn>", "好", "<eot>"]),
        ("bilingual", {"en": "hi", "zh": "好"}, ["<cn>", "好", "<en>", "hi", "<eot>"]),
        ("code", {"text": "x = 1\n", "lang": "java"}, ["<java>", "x = 1\n", "<eot>"]),
        ("code", {"text": "x = 1\n"}, ["<python>", "x = 1\n", "<eot>"]),
        ("alpha", {"text": "好"}, ["好", "<eot>"]),
    ],
)
def test_each_kind_of_domain_has_its_format(tiny_tokenizer, name, record, expected):
    expected_ids = []
    for item in expected:
        is_control = item.startswith("<")
        expected_ids += [tiny_tokenizer.control_id(item)] if is_control else tiny_tokenizer.encode(item)

    documents = encode_documents([document_parts(DOMAINS[name], record)], tiny_tokenizer)

    assert documents == [expected_ids]


def test_documents_encode_the_same_together_and_alone(tiny_tokenizer):
    documents = [
        document_parts(DOMAINS["bilingual"], {"zh": "好的", "en": "fine"}),
        document_parts(DOMAINS["en"], {"text": "word1 word2"}),
        document_parts(DOMAINS["code"], {"text": "def f():\n\treturn 1"}),
    ]

    alone = [encode_documents([parts], tiny_tokenizer)[0] for parts in documents]

    assert encode_documents(documents, tiny_tokenizer, threads=3) == alone


def test_text_cannot_end_its_document(tiny_tokenizer):
    (ids,) = encode_documents([document_parts(DOMAINS["en"], {"text": "a <eot> b <cn>"})], tiny_tokenizer)

    assert ids.count(tiny_tokenizer.eot_id) == 1
    assert tiny_tokenizer.control_id("<cn>") not in ids


@pytest.mark.parametrize("name", ["zh", "bilingual", "code", "alpha"])
def test_a_prompt_starts_like_a_document_and_has_no_end(tiny_tokenizer, name):
    record = {"text": "word1", "zh": "word1", "en": "word2"}
    (document,) = encode_documents([document_parts(DOMAINS[name], record)], tiny_tokenizer)

    prompt = prompt_ids(DOMAINS[name], "word1", tiny_tokenizer)

    assert prompt == document[: len(prompt)]
    assert len(prompt) == len(DOMAINS[name].control_tokens[:1]) + len(tiny_tokenizer.encode("word1"))


def test_a_tokenizer_without_the_domains_token_is_refused(tiny_tokenizer):
    with pytest.raises(TokenizerError, match="no control token '<de>'"):
        prompt_ids(DOMAINS["de"], "hallo", tiny_tokenizer)
