"""A run that trains only some of its domains needs text only for these."""

import json

import numpy as np
import pytest

from mindpangu.config import load_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import HELDOUT, TRAIN, Loader, TokenShards, heldout_batches
from mindpangu.data.prepare import prepare_routing, prepare_shards
from mindpangu.domains import build_domains
from mindpangu.errors import DataError
from mindpangu.routing import RoutingTable


@pytest.fixture(scope="module")
def prepare(tiny_tokenizer, tmp_path_factory):
    """Returns prepare(name, **overrides) → (config, log). The corpus has text of zh, and a single document of en."""
    folder = tmp_path_factory.mktemp("zh_alone")
    records = [{"domain": "zh", "text": "你好世界" * (1 + i % 7)} for i in range(40)]
    records.append({"domain": "en", "text": "word1"})
    (folder / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (folder / "tiny.model").write_bytes(tiny_tokenizer.model_bytes)

    def run(name, **changes):
        overrides = {
            "data.corpus": f"[{folder}/corpus.jsonl]",
            "model.vocab_size": str(tiny_tokenizer.vocab_size),
            "model.seq_length": "8",
            "training.local_batch_size": "4",
            "training.output_dir": str(folder),
            "training.run_name": name,
        } | {key.replace("__", "."): value for key, value in changes.items()}
        config = load_config(None, overrides)
        messages = []
        tokenizer = RunFolder.from_config(config).tokenizer
        tokenizer.mkdir(parents=True, exist_ok=True)
        (tokenizer / "main.model").write_bytes(tiny_tokenizer.model_bytes)
        prepare_shards(config, messages.append)
        prepare_routing(config, messages.append)
        return config, "\n".join(messages)

    return run


def test_domains_of_weight_0_need_no_text(prepare):
    config, log = prepare("zh", data__mixture="{bilingual: 0, zh: 1, en: 0, code: 0}")

    domains = build_domains(config)
    folder = RunFolder.from_config(config)
    shards = TokenShards.open(folder.data, verify=True)
    assert "        code              0                0" in log
    for name in ("bilingual", "code"):
        assert shards.num_tokens(name, TRAIN) == shards.num_tokens(name, HELDOUT) == 0
        assert len(shards.tokens(name, TRAIN)) == len(shards.samples(name, TRAIN, 8)) == 0
        assert shards.token_counts(name, TRAIN, 400).sum() == 0
        with pytest.raises(DataError, match=f"heldout split of domain '{name}' has 0 tokens"):
            next(heldout_batches(shards, name, config, 4))
    loader = Loader(shards, domains, config)
    for _ in range(5):
        (batch,) = loader.next_step().micro_batches
        assert set(batch.sample_ids_B2[:, 0].tolist()) == {1}
    statistics = json.loads((folder.routing / "statistics.json").read_text())
    assert {group["domain"] for group in statistics["groups"]} == {"zh"}
    # every domain still has a table, in which experts own equal numbers of ids
    table = RoutingTable.load(folder.routing, [domain.name for domain in domains])
    for name in ("bilingual", "code"):
        counts = np.bincount(table.array(0, name), minlength=16)
        assert counts.min() >= counts.max() - 1


def test_a_weight_above_0_in_any_phase_needs_text(prepare):
    phases = '[{"steps": 3, "mixture": {"code": 1}}]'

    for name, changes in {
        "all": {},
        "phases": {"data__phases": phases, "data__mixture": "{bilingual: 0, zh: 1, en: 0, code: 0}"},
    }.items():
        with pytest.raises(DataError, match=r"no record of domain '(bilingual|code)'.*give it the weight 0"):
            prepare(name, **changes)
    with pytest.raises(DataError, match="domain 'en' has a single source document"):
        prepare("single", data__mixture="{bilingual: 0, zh: 1, en: 1, code: 0}")
