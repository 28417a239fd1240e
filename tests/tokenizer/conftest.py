"""A small tokenizer, trained on part of the corpus in the repository."""

import json
from pathlib import Path

import pytest

from mindpangu.domains import PRESETS, control_tokens_of
from mindpangu.tokenizer import train_tokenizer

CORPUS = Path(__file__).resolve().parents[2] / "recipes" / "corpus"


def corpus_texts(name, count):
    with open(CORPUS / name, encoding="utf-8") as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(count), strict=False)]


@pytest.fixture(scope="session")
def sample_texts():
    """Returns English, code, and little enough Chinese that its characters fit into a small vocabulary."""
    return [
        *corpus_texts("en.sqlite-docs.jsonl", 15),
        *corpus_texts("code.cpython-stdlib.jsonl", 4),
        *corpus_texts("zh.libreoffice-help.jsonl", 20),
    ]


@pytest.fixture(scope="session")
def tokenizer(sample_texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    return train_tokenizer(sample_texts, 2000, control_tokens_of(PRESETS["sigma_4"]), path)
