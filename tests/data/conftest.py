"""Small corpora, configurations, and shards for the tests of the data path."""

import json

import numpy as np
import pytest

from mindpangu.config import Config, DataConfig, DomainsConfig, ModelConfig, MonitorConfig, TrainingConfig, resolve
from mindpangu.config.schema import ParallelismConfig
from mindpangu.data import CorpusReader, split_corpus, write_shards
from mindpangu.domains import build_domains, control_tokens_of
from mindpangu.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def make_config():
    def make(corpus=(), names=(), seq_length=8, local=4, world=0, replicas=1, heldout_samples=64, **data):
        return resolve(
            Config(
                model=ModelConfig(seq_length=seq_length),
                domains=DomainsConfig(names=list(names)),
                data=DataConfig(corpus=[str(path) for path in corpus], **data),
                training=TrainingConfig(local_batch_size=local, global_batch_size=world),
                parallelism=ParallelismConfig(data_parallel=replicas),
                monitor=MonitorConfig(heldout_samples=heldout_samples),
            )
        )

    return make


@pytest.fixture(scope="session")
def write_jsonl():
    def write(path, records):
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def tiny_records():
    """Returns 40 source documents per domain, of 3 records each, with different lengths."""
    records = []
    for doc in range(40):
        for part in range(3):
            origin = {"source": "test", "doc": f"{doc}"}
            words = " ".join(f"word{(doc * 7 + part * 3 + k) % 11}" for k in range(2 + doc % 5))
            chinese = "你好世界"[: 1 + doc % 4] * (1 + part)
            records += [
                {"domain": "en", "text": words, **origin},
                {"domain": "zh", "text": chinese, **origin},
                {"domain": "bilingual", "zh": chinese, "en": words, **origin},
                {"domain": "code", "text": f"def f{doc}():\n    return {words!r}\n", "lang": "java", **origin},
            ]
    return records


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_records, tmp_path_factory, make_config):
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    texts = [record.get("text") or record["en"] for record in tiny_records]
    return train_tokenizer(texts, 365, control_tokens_of(build_domains(make_config())), path)


@pytest.fixture(scope="session")
def tiny_shards(tiny_records, tiny_tokenizer, tmp_path_factory, make_config, write_jsonl):
    """Returns (shards of all four domains, domains). Tests must not change the files."""
    folder = tmp_path_factory.mktemp("shards")
    config = make_config([write_jsonl(folder / "corpus.jsonl", tiny_records)], heldout_fraction=0.2)
    domains = build_domains(config)
    reader = CorpusReader(config, domains)
    return write_shards(folder / "shards", reader, split_corpus(reader), tiny_tokenizer), domains


@pytest.fixture
def token_stream(tiny_shards):
    """Returns a function that reads the ids of a domain's split into a plain array."""
    return lambda name, split: np.array(tiny_shards[0].tokens(name, split), np.int32)
