"""The stages before training: what each writes, prints, and does again only if its inputs have changed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindpangu.config import load_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import HELDOUT, TRAIN, TokenShards, prepare
from mindpangu.data.prepare import prepare_routing, prepare_shards, prepare_tokenizer, show_routing
from mindpangu.domains import build_domains
from mindpangu.errors import StageError, TokenizerError
from mindpangu.routing import RoutingTable
from mindpangu.tokenizer import Tokenizer


@pytest.fixture
def plots(monkeypatch):
    """Returns a list of the plots: the assignments of the tables that each compares."""
    drawn = []

    def plot(compared, path):
        drawn.append([statistics.assignment for statistics in compared])
        path.write_bytes(b"plot")

    monkeypatch.setattr(prepare, "plot_load", plot)
    return drawn


@pytest.fixture
def configure(tiny_records, tiny_tokenizer, write_jsonl, tmp_path):
    """Returns configure(**changes) → configuration of a run of a tiny sparse model with the tiny tokenizer."""
    write_jsonl(tmp_path / "corpus.jsonl", tiny_records)
    (tmp_path / "tiny.model").write_bytes(tiny_tokenizer.model_bytes)

    def make(**changes):
        overrides = {
            "data.corpus": f"[{tmp_path}/corpus.jsonl]",
            "data.heldout_fraction": "0.2",
            "data.tokenizer": f"{tmp_path}/tiny.model",
            "model.vocab_size": str(tiny_tokenizer.vocab_size),
            "model.num_layers": "3",
            "model.rre_layers": "2",
            "model.seq_length": "8",
            "domains.experts_per_domain": "3",
            "training.local_batch_size": "4",
            "training.output_dir": str(tmp_path),
            "training.run_name": "run",
        }
        return load_config(None, overrides | {key.replace("__", "."): value for key, value in changes.items()})

    return make


def run(stages, config):
    """Runs stages; returns what they print."""
    messages = []
    for stage in stages:
        stage(config, messages.append)
    return "\n".join(messages)


ALL = (prepare_tokenizer, prepare_shards, prepare_routing)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_each_stage_writes_its_folder_once(configure, plots, tiny_tokenizer):
    config = configure()
    folder = RunFolder.from_config(config)

    first = run(ALL, config)
    written = contents(folder.root)
    second = run(ALL, config)

    assert f"tokenizer: {tiny_tokenizer.vocab_size} pieces → {folder.tokenizer}" in first
    assert f"data: token shards → {folder.data}" in first
    assert first.endswith(f"routing: balanced table → {folder.routing}")
    assert second.splitlines() == [
        f"tokenizer: up to date ({folder.tokenizer})",
        f"data: up to date ({folder.data})",
        f"routing: up to date ({folder.routing})",
    ]
    assert contents(folder.root) == written
    assert plots == [["random", "balanced"]]


def test_a_tokenizer_is_trained_on_the_training_split(configure, tiny_tokenizer):
    config = configure(data__tokenizer="")
    folder = RunFolder.from_config(config)

    first = run([prepare_tokenizer], config)
    second = run([prepare_tokenizer], config)

    tokenizer = Tokenizer.load(folder.tokenizer / "main.model")
    assert tokenizer.vocab_size == config.model.vocab_size
    assert all(tokenizer.has_control(token) for token in ("<cn>", "<en>", "<python>", "<java>", "<eot>"))
    assert f"tokenizer: training {tokenizer.vocab_size} pieces on 0.0 MB of text" in first
    assert "records" not in first, "all records were used"
    assert second == f"tokenizer: up to date ({folder.tokenizer})"


def test_a_tokenizer_is_trained_again_for_another_corpus_or_vocabulary(configure, tmp_path, tiny_tokenizer):
    def digest(**changes):
        config = configure(data__tokenizer="", **changes)
        run([prepare_tokenizer], config)
        return Tokenizer.load(RunFolder.from_config(config).tokenizer / "main.model").digest

    original = digest()
    larger = digest(model__vocab_size=str(tiny_tokenizer.vocab_size + 1))
    other_split = digest(data__seed="1")
    with open(tmp_path / "corpus.jsonl", "a") as corpus:
        corpus.write('{"domain": "klingon"}\n' + '{"domain": "en", "text": "brillig toves"}\n' * 9)
    messages = run([prepare_tokenizer], configure(data__tokenizer="", data__max_bad_records="1"))

    assert len({original, larger, other_split}) == 3
    assert "tokenizer: 489 records; 1 bad records:" in messages


def test_the_given_tokenizer_is_copied_and_must_fit_the_model(configure, tiny_tokenizer):
    size = tiny_tokenizer.vocab_size
    config = configure(model__vocab_size=str(size + 1))  # more rows than pieces are fine

    run([prepare_tokenizer], config)

    assert (RunFolder.from_config(config).tokenizer / "main.model").read_bytes() == tiny_tokenizer.model_bytes
    with pytest.raises(
        TokenizerError, match=f"has {size} pieces, but model.vocab_size is {size - 1}; set it to {size}"
    ):
        run([prepare_tokenizer], configure(model__vocab_size=str(size - 1), training__run_name="small"))


def test_every_vocabulary_has_the_tokenizer_and_a_table_of_its_size(configure, plots, tiny_tokenizer):
    size = tiny_tokenizer.vocab_size
    vocabularies = [
        {"name": "a", "vocab_size": size, "domains": ["zh", "en"]},
        {"name": "b", "vocab_size": size + 5, "domains": ["code"]},
    ]
    config = configure(
        domains__names="[zh, en, code]", domains__vocabularies=json.dumps(vocabularies), model__vocab_size="300"
    )
    folder = RunFolder.from_config(config)

    run(ALL, config)

    assert sorted(path.name for path in folder.tokenizer.glob("*.model")) == ["a.model", "b.model"]
    assert {path.read_bytes() for path in folder.tokenizer.glob("*.model")} == {tiny_tokenizer.model_bytes}
    table = RoutingTable.load(folder.routing, ["zh", "en", "code"])
    assert [table.vocab_size(name) for name in table.domain_names] == [size, size, size + 5]


def test_the_table_of_text_has_tokens_and_density_of_every_domain(configure):
    config = configure()

    lines = run([prepare_tokenizer, prepare_shards], config).splitlines()

    shards = TokenShards.open(RunFolder.from_config(config).data, verify=True)
    (header,) = (index for index, line in enumerate(lines) if "bytes/token" in line)
    for line, name in zip(lines[header + 1 :], shards.domain_names, strict=False):
        train, heldout = (shards.num_tokens(name, split) for split in (TRAIN, HELDOUT))
        density = shards.text_bytes(name, TRAIN) / train
        assert line.split() == [name, f"{train:,}", f"{heldout:,}", f"{density:.2f}"]
    assert lines[header - 1] == "480 records"


def test_the_table_of_records_has_answers_and_shortened_records(configure, write_jsonl, tmp_path, plots):
    records = [
        {"domain": name, "task": "qa", "question": f"word{doc}", "answer": "word1 " * (1 + 20 * (doc % 2))}
        for name in ("zh", "en")
        for doc in range(10)
    ]
    write_jsonl(tmp_path / "corpus.jsonl", records)
    config = configure(data__format="instruction", domains__names="[zh, en]", model__seq_length="24")
    folder = RunFolder.from_config(config)

    lines = run(ALL, config).splitlines()

    shards = TokenShards.open(folder.data, verify=True)
    (header,) = (index for index, line in enumerate(lines) if "answer tokens" in line)
    for line, name in zip(lines[header + 1 : header + 3], ("zh", "en"), strict=True):
        sides = [shards.num_answers(name, split) for split in (TRAIN, HELDOUT)]
        train, heldout = (shards.num_documents(name, split) for split in (TRAIN, HELDOUT))
        assert line.split() == [name, str(train), str(heldout), str(sides[0][0] + sides[1][0]), "5"]
    # the load is that of the text, without the padding
    statistics = json.loads((folder.routing / "statistics.json").read_text())
    loads = [group["train"]["tokens_per_expert"] for group in statistics["groups"]]
    assert [sum(load) for load in loads] == [len(shards.text_tokens(name, TRAIN)) for name in ("zh", "zh", "en", "en")]


def test_bad_records_are_listed_in_a_file_and_counted(configure, tmp_path):
    config = configure(data__max_bad_records="7")
    run([prepare_tokenizer, prepare_shards], config)
    folder = RunFolder.from_config(config)
    assert not (folder.data / "bad_records.txt").exists()
    with open(tmp_path / "corpus.jsonl", "a") as corpus:
        corpus.write("{}\n" * 7)

    text = run([prepare_shards], config)

    assert "480 records; 7 bad records:" in text
    assert f"full list: {folder.data}/bad_records.txt" in text
    listed = (folder.data / "bad_records.txt").read_text()
    assert [line.split(":")[1] for line in listed.splitlines()] == [str(number) for number in range(481, 488)]
    assert listed.endswith("\n")


@pytest.mark.parametrize(
    "changes", [{"data__seed": "1"}, {"data__heldout_fraction": "0.1"}, {"domains__names": "[zh, en]"}]
)
def test_shards_are_written_again_if_their_settings_change(configure, changes):
    run([prepare_tokenizer, prepare_shards], configure())

    text = run([prepare_shards], configure(**changes))

    assert "data: token shards →" in text


def test_only_the_shards_of_records_depend_on_the_sequence_length(configure, write_jsonl, tmp_path):
    run([prepare_tokenizer, prepare_shards], configure())
    assert "data: up to date" in run([prepare_shards], configure(model__seq_length="16"))
    records = [{"domain": "en", "task": "qa", "question": f"word{doc}", "answer": "a"} for doc in range(4)]
    write_jsonl(tmp_path / "corpus.jsonl", records)

    changes = {"data__format": "instruction", "domains__names": "[en]"}
    run([prepare_shards], configure(**changes))

    assert "data: up to date" in run([prepare_shards], configure(**changes))
    assert "data: token shards →" in run([prepare_shards], configure(model__seq_length="16", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"routing__seed": "1"},
        {"routing__jitter": "0.25"},
        {"routing__assignment": "random"},
        {"model__rre_layers": "1"},
        {"model__vocab_size": "500"},
        {"domains__experts_per_domain": "2"},
        {"training__local_batch_size": "8"},
        {"model__seq_length": "16"},
    ],
)
def test_the_table_is_drawn_again_if_its_settings_change(configure, plots, changes):
    run(ALL, configure())

    text = run([prepare_routing], configure(**changes))

    assert "table →" in text
    assert len(plots) == 2


def test_nothing_that_a_checkpoint_depends_on_is_replaced(configure, plots, tiny_tokenizer, tmp_path):
    config = configure()
    folder = RunFolder.from_config(config)
    (folder.checkpoints / "iteration_3").mkdir(parents=True)
    run(ALL, config)  # what is missing may be written
    written = contents(folder.root)
    changed = replace(config, routing=replace(config.routing, seed=1), data=replace(config.data, seed=1))
    other_domains = configure(domains__names="[zh, en]")

    for stage, other in ((prepare_tokenizer, other_domains), (prepare_shards, changed), (prepare_routing, changed)):
        with pytest.raises(StageError, match=r"belongs to the training in .*/run, but .* remove .*/run/checkpoint$"):
            run([stage], other)

    assert contents(folder.root) == written
    (folder.checkpoints / "iteration_3").rmdir()
    assert "data: token shards →" in run([prepare_shards], changed)


def test_the_tokenizer_must_be_prepared_first(configure):
    with pytest.raises(TokenizerError, match=r"there is no tokenizer in .*/run/tokenizer; run `mindpangu tokenizer"):
        run([prepare_shards], configure())


def test_a_dense_model_has_no_table(configure, plots):
    config = configure(model__rre_layers="0")

    text = run(ALL, config)

    assert text.endswith("routing: a dense model has no routing table")
    assert not RunFolder.from_config(config).routing.exists()
    assert plots == []


def test_the_table_follows_the_settings_and_the_text(configure, plots):
    config = configure(routing__seed="3", data__domains_per_step="2")
    folder = RunFolder.from_config(config)

    run(ALL, config)

    shards = TokenShards.open(folder.data)
    domains = build_domains(config)
    counts = {name: shards.token_counts(name, TRAIN, config.model.vocab_size) for name in shards.domain_names}
    expected = RoutingTable.build(domains, counts, 2, config.routing)
    assert RoutingTable.load(folder.routing, shards.domain_names).digest == expected.digest
    statistics = json.loads((folder.routing / "statistics.json").read_text())
    assert statistics["digest"] == expected.digest
    assert statistics["tokens_per_step"] == 4 * 8 // 2
    for group in statistics["groups"]:
        for side, split in (("train", TRAIN), ("heldout", HELDOUT)):
            experts_V = expected.array(group["layer"], group["domain"])
            loads = np.bincount(experts_V[shards.tokens(group["domain"], split)], minlength=3)
            assert group[side]["tokens_per_expert"] == loads.tolist()


def test_a_given_table_is_copied(configure, plots):
    config = configure(routing__assignment="random", routing__seed="5")
    run(ALL, config)
    given = RunFolder.from_config(config).routing
    other = configure(routing__table=str(given), training__run_name="other")

    text = run(ALL, other)
    again = run([prepare_routing], other)

    assert "routing: random table →" in text
    assert again.startswith("routing: up to date")
    names = [domain.name for domain in build_domains(config)]
    copied = RunFolder.from_config(other).routing
    assert RoutingTable.load(copied, names).digest == RoutingTable.load(given, names).digest
    assert plots == [["random"], ["random"]]


def test_a_missing_plot_is_drawn_again_and_the_load_can_be_shown(configure, plots):
    config = configure()
    folder = RunFolder.from_config(config)
    prepared = run(ALL, config)
    folder.load_plot.unlink()

    assert run([prepare_routing], config) == f"routing: up to date ({folder.routing})"
    assert folder.load_plot.exists()
    shown = run([show_routing], config)

    assert "expected load (balanced)" in shown
    assert shown.endswith(f"routing: plot of the experts' load → {folder.load_plot}")
    assert shown in prepared
    assert plots == [["random", "balanced"]] * 3
