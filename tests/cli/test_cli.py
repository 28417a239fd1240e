"""The command line: all stages on a tiny corpus, skipping, help, and errors as one message."""

import json
import re
import shutil

import pytest

from mindpangu.cli.main import VERBS, main

STAGES = (
    ["tokenizer", "train"],
    ["data", "prepare"],
    ["routing", "build"],
    ["train"],
    ["evaluate"],
    ["generate", "--every-domain", "--max-new-tokens", "4"],
)


def options(overrides):
    return [word for key, value in overrides.items() for word in (f"--{key}", value)]


@pytest.fixture(scope="module")
def whole_run(tiny_overrides, tmp_path_factory):
    """(options, run folder) of a run after all stages of the command line."""
    output = tmp_path_factory.mktemp("cli")
    words = options(tiny_overrides | {"training.output_dir": str(output), "training.run_name": "whole"})
    for stage in STAGES:
        assert main([*stage, *words]) == 0
    return words, output / "whole"


def test_the_run_folder_is_as_documented(whole_run):
    _, folder = whole_run
    names = [
        "config.yaml",
        "metrics.jsonl",
        "report.md",
        "loss.png",
        "routing.png",
        "log/rank_0/info.log",
        "latest_checkpointed_iteration.txt",
        "checkpoint/iteration_00000006/manifest.json",
        "evaluation.json",
        "samples.json",
    ]

    for name in names:
        assert (folder / name).stat().st_size > 0, name

    report = (folder / "report.md").read_text()
    assert "## Held-out text (step 6)" in report
    assert "**code**" in report


def test_every_stage_is_skipped_the_second_time_without_mindspore(whole_run, without_mindspore):
    words, folder = whole_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}

    printed = without_mindspore(*([*stage, *words] for stage in STAGES))

    assert printed.count("up to date") == len(STAGES)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_a_changed_setting_runs_its_stage_again(whole_run, capsys):
    words, _ = whole_run

    assert main(["evaluate", *words, "--monitor.heldout_samples", "2"]) == 0
    assert "up to date" not in capsys.readouterr().out
    assert main(["evaluate", *words]) == 0  # restores the state that the other tests expect


def test_samples_of_prompts_by_an_older_rule_are_made_again(whole_run, tmp_path):
    words, folder = whole_run
    shutil.copytree(folder, tmp_path / "whole")
    words = [str(tmp_path) if word == str(folder.parent) else word for word in words]
    path = tmp_path / "whole" / "samples.json"
    current = json.loads(path.read_text("utf-8"))
    older = {name: value for name, value in current["inputs"].items() if name != "prompt_rule"}
    path.write_text(json.dumps(current | {"inputs": older, "samples": []}), "utf-8")

    assert main([*STAGES[-1], *words]) == 0

    assert json.loads(path.read_text("utf-8")) == current


def test_a_dense_model_passes_the_same_stages(tiny_overrides, tmp_path, capsys):
    changes = {"training.output_dir": str(tmp_path), "training.run_name": "dense", "model.rre_layers": "0"}
    words = options(tiny_overrides | changes)

    for stage in STAGES:
        assert main([*stage, *words]) == 0

    assert "a dense model has no routing table" in capsys.readouterr().out
    assert not (tmp_path / "dense" / "routing").exists()
    assert main(["train", *words]) == 0
    assert "up to date" in capsys.readouterr().out


def test_generate_continues_a_prompt(whole_run, capsys):
    _, folder = whole_run
    arguments = ["generate", "--checkpoint", str(folder), "--domain", "en", "--prompt", "open the", "--max-new-tokens"]

    assert main([*arguments, "3"]) == 0

    captured = capsys.readouterr()
    assert captured.out.startswith("open the")
    assert re.search(r"generate: [1-3] tokens of 1 text in .* tokens/s .*; \d+ experts fetched", captured.err)


def test_generate_continues_prompts_of_a_file(whole_run, tmp_path, capsys):
    _, folder = whole_run
    path = tmp_path / "prompts.jsonl"
    record = '{"domain": "zh", "task": "qa", "question": "打开"}'
    path.write_text('{"prompt": "open the"}\n{"domain": "zh", "prompt": "打开"}\n' + record, "utf-8")
    arguments = ["generate", "--checkpoint", str(folder), "--domain", "en", "--prompt", "close", "--prompts", str(path)]

    assert main([*arguments, "--max-new-tokens", "2", "--stop", "\n", "--stop-token", "<en>", "--top-k", "3"]) == 0

    out = capsys.readouterr().out
    assert out.index("close") < out.index("open the") < out.index("打开") < out.index("问：打开\n答：")

    assert main([*arguments, "--expert-memory", "1KB"]) == 1
    assert "give at least" in capsys.readouterr().err
    assert main([*arguments, "--stop-token", "<fr>"]) == 1
    assert "has no control token '<fr>'" in capsys.readouterr().err
    path.write_text('{"domain": "zh", "task": "qa"}', "utf-8")
    assert main(arguments) == 1
    assert '"question"' in capsys.readouterr().err


def test_a_model_that_was_trained_elsewhere_computes_here(whole_run, tmp_path, capsys):
    """A checkpoint may be used on another device than the one that trained it."""
    folder = shutil.copytree(whole_run[1], tmp_path / "whole")
    words = ["--checkpoint", str(folder), "--training.output_dir", str(tmp_path), "--context.device_target"]

    for verb in (["generate", "--domain", "en", "--prompt", "open", "--max-new-tokens", "1"], ["evaluate"]):
        assert main([*verb, *words, "Ascend", "--monitor.heldout_samples", "1"]) == 1
        assert "context.device_target is Ascend, which MindSpore does not find here" in capsys.readouterr().err
        assert main([*verb, *words, "CPU", "--context.precision", "fp16", "--monitor.heldout_samples", "1"]) == 0


def test_a_model_other_than_the_checkpoints_is_refused(whole_run, capsys):
    _, folder = whole_run

    for verb in (["evaluate"], ["generate", "--every-domain"]):
        assert main([*verb, "--checkpoint", str(folder), "--model.hidden_size", "32"]) == 1
        assert "model.hidden_size is 16 there, 32 here" in capsys.readouterr().err


def test_bad_records_are_all_named_in_a_file(tiny_overrides, tiny_corpus, tmp_path, capsys):
    corpus = tmp_path / "bad.jsonl"
    corpus.write_text(tiny_corpus.read_text() + "{}\n" * 7)
    changes = {"data.corpus": f"[{corpus}]", "training.output_dir": str(tmp_path), "data.max_bad_records": "7"}
    words = options(tiny_overrides | changes)

    assert main(["tokenizer", "train", *words]) == 0
    assert main(["data", "prepare", *words]) == 0

    assert "7 bad records" in capsys.readouterr().out
    bad_lines = (tmp_path / "prepared" / "data" / "bad_records.txt").read_text().splitlines()
    assert [line.split(":")[1] for line in bad_lines] == [str(line_number) for line_number in range(241, 248)]


def test_routing_stats_prints_the_expected_load(whole_run, capsys):
    words, _ = whole_run
    assert main(["routing", "stats", *words]) == 0
    assert "expected load (balanced)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--training.step", "3"], "unknown key training.step; did you mean training.steps?"),
        (["train", "--config", "absent.yaml"], "absent.yaml does not exist"),
        (["train", "--training.run_name", "nothing_there"], "no token shards"),
        (["data", "prepare", "--data.corpus", "[absent/*.jsonl]"], "'absent/*.jsonl' matches no file"),
        (["data", "prepare", "--training.run_name", "nothing_there"], "tokenizer"),
        (["routing", "build", "--training.run_name", "nothing_there"], "no token shards"),
        (["evaluate", "--checkpoint", "nowhere"], "no complete checkpoint in nowhere"),
        (["generate", "--every-domain", "--prompt", "x"], "give either --domain NAME --prompt TEXT"),
        (["generate", "--prompt", "x"], "--prompt needs --domain"),
        (["generate", "--domain", "en"], "there is nothing to continue"),
        (["generate", "--domain", "en", "--prompts", "absent.txt"], "--prompts absent.txt cannot be read"),
        (["generate", "--domain", "en", "--prompt", "x", "--top-p", "2"], "top_p is 2.0"),
        (["generate", "--domain", "en", "--prompt", "x", "--expert-memory", "some"], "--expert-memory is 'some'"),
        (["config", "--get", "model.depth"], "unknown key model.depth"),
    ],
)
def test_errors_are_one_message(arguments, message, capsys, tmp_path, monkeypatch):
    corpus = tmp_path / "recipes" / "corpus"
    corpus.mkdir(parents=True)
    (corpus / "a.jsonl").write_text('{"domain": "en", "text": "a"}\n')
    monkeypatch.chdir(tmp_path)

    assert main(arguments) == 1

    error = capsys.readouterr().err
    assert error.startswith("mindpangu: error: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "arguments", [["train", "--training.steps"], ["train", "--steps", "3"], ["learn"], ["data", "unprepare"]]
)
def test_a_wrong_word_is_named(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert arguments[1 if len(arguments) > 1 else 0] in capsys.readouterr().err


def test_overrides_may_stand_anywhere(capsys):
    assert main(["--training.steps", "70", "config", "--model.seq_length=-3"]) == 1
    assert "model.seq_length is -3; allowed: >= 2" in capsys.readouterr().err
    assert main(["config", "--training.steps", "70", "--get", "training.steps"]) == 0
    assert capsys.readouterr().out == "70\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", "[]"),
        ("evaluation.json", '{"domains": null}'),
        ("samples.json", "{"),
        ("metrics.jsonl", '{"step": 1}\n'),
        ("metrics.jsonl", "\xff\xfe"),
        ("report.md", None),
        ("routing.png", None),
        ("latest_checkpointed_iteration.txt", "3\n"),
        ("routing/stage.json", "{}"),
        ("data/stage.json", "[]"),
    ],
)
def test_damaged_results_are_made_again(whole_run, tmp_path, name, content):
    words, folder = whole_run
    shutil.copytree(folder, tmp_path / "whole")
    path = tmp_path / "whole" / name
    kept = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    words = [str(tmp_path) if word == str(folder.parent) else word for word in words]

    for stage in STAGES:
        assert main([*stage, *words]) == 0

    if name.endswith((".txt", ".md", ".png", "stage.json")):
        assert path.read_bytes() == kept


def test_stages_do_not_replace_the_inputs_of_a_training(whole_run, capsys):
    words, folder = whole_run
    before = (folder / "tokenizer" / "main.model").read_bytes()

    for stage, change in (
        (["tokenizer", "train"], ["--data.seed", "1"]),
        (["data", "prepare"], ["--data.seed", "1"]),
        (["routing", "build"], ["--routing.seed", "1"]),
    ):
        assert main([*stage, *words, *change]) == 1
        assert "belongs to the training in" in capsys.readouterr().err

    assert (folder / "tokenizer" / "main.model").read_bytes() == before


def test_an_altered_shard_is_rewritten_by_its_stage_and_refused_by_the_others(whole_run, tmp_path, capsys):
    words, folder = whole_run
    shutil.copytree(folder, tmp_path / "whole")
    words = [str(tmp_path) if word == str(folder.parent) else word for word in words]
    shard = tmp_path / "whole" / "data" / "zh.heldout.bin"
    kept = bytearray(shard.read_bytes())
    shard.write_bytes(bytes([kept[0] ^ 1]) + kept[1:])

    assert main(["evaluate", *words]) == 1
    assert "zh.heldout.bin was altered" in capsys.readouterr().err
    assert main(["data", "prepare", *words]) == 0
    assert shard.read_bytes() == kept
    assert main(["evaluate", *words]) == 0


@pytest.mark.parametrize("verb", [verb.__name__.rsplit(".", 1)[1] for verb in VERBS])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert "--config FILE" in capsys.readouterr().out


def test_config_prints_values_and_keys(capsys):
    assert main(["config", "--get", "training.steps", "--training.steps=70"]) == 0
    assert capsys.readouterr().out == "70\n"

    assert main(["config", "--get", "run_folder", "--training.run_name", "a"]) == 0
    assert capsys.readouterr().out == "output/a\n"

    assert main(["config", "--keys"]) == 0
    assert "--data.domains_per_step  (int, default 1)" in capsys.readouterr().out

    assert main(["config"]) == 0
    assert "hidden_size: 256" in capsys.readouterr().out
