"""mindpangu finetune on a tiny run: its settings, the trained parameters, a second start, errors, published files."""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter
from mindpangu.cli.main import main
from mindpangu.config import load_config
from mindpangu.data import TokenShards
from mindpangu.lifecycle.finetune import finetune_settings
from mindpangu.tokenizer.extend import extend
from mindpangu.train.checkpointing import take_snapshot, write_checkpoint
from mindpangu.train.run import open_run, set_device
from mindpangu.train.step import TrainStep

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
MIXTURE = {"bilingual": 0, "zh": 1, "en": 0, "code": 0}


def options(overrides):
    return [word for key, value in overrides.items() for word in (f"--{key}", value)]


def write_records(path, domain="zh", count=24):
    records = [
        {"domain": domain, "task": "qa", "question": "打开" * (1 + i % 3), "answer": "窗口" * (1 + i % 2)}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


@pytest.fixture(scope="module")
def base(tiny_overrides, tmp_path_factory):
    """A run folder with a checkpoint of initial weights; the tests do not depend on their quality."""
    output = tmp_path_factory.mktemp("finetune")
    shutil.copytree(Path(tiny_overrides["training.output_dir"]) / "prepared", output / "base")
    overrides = {"training.output_dir": str(output), "training.run_name": "base"}
    config = load_config(None, tiny_overrides | overrides)
    set_device(config)
    run = open_run(config)
    run.model.store.initialize()
    run.folder.checkpoints.mkdir()
    snapshot = take_snapshot(TrainStep(run.model), 1, {"samples_taken": [0] * 4}, {}, None)
    write_checkpoint(run.folder, CheckpointWriter(run.folder.checkpoints, 1), run.model, snapshot, None)
    return run.folder.root


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """(words, run folder, printed text) of a fine-tuning of zh's experts."""
    data = write_records(tmp_path_factory.mktemp("records") / "zh.jsonl")
    words = ["finetune", "--checkpoint", str(base), "--data", str(data), "--train", "experts:zh"]
    words += ["--training.steps", "8", "--lr_scheduler.learning_rate", "0.01", "--answers", "1"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(words) == 0
    return words, base.with_name("base_finetuned"), printed.getvalue()


def test_fine_tuning_takes_the_checkpoints_settings_and_prints_its_own(base, tuned):
    _, folder, printed = tuned

    config = CheckpointReader(folder).config()

    assert config.model == CheckpointReader(base).config().model
    assert config.data.mixture == MIXTURE
    assert (config.training.train, config.training.steps) == ("experts:zh", 8)
    assert "training.train experts:zh, 8 steps of 4 samples, peak learning rate 0.01" in printed
    assert TokenShards.open(folder.parent / "base_finetuned" / "data").has_records
    assert (folder / "tokenizer" / "main.model").read_bytes() == (base / "tokenizer" / "main.model").read_bytes()


def test_the_loss_of_heldout_answers_falls_and_nothing_else_moves(base, tuned):
    _, folder, printed = tuned

    report = json.loads((folder / "finetune.json").read_text("utf-8"))

    (before,) = report["before"]["domains"]
    (after,) = report["after"]["domains"]
    assert before["domain"] == after["domain"] == "zh"
    assert after["loss"] < before["loss"] - 0.05
    assert f"{before['loss']:.3f}" in printed
    answer = report["after"]["answers"][0]
    assert answer["given"].endswith("打开\n答：")
    assert answer["reference"].startswith("窗口")
    old = CheckpointReader(base)
    new = CheckpointReader(folder)
    weights = {
        name: value for name, value in old.tensors("dense_00000_of_00001.safetensors").items() if "adam_" not in name
    }
    tuned_weights = new.tensors("dense_00000_of_00001.safetensors")
    assert all(tuned_weights[name].tobytes() == value.tobytes() for name, value in weights.items())
    for name in (name for name in old.files if name.startswith("experts/")):
        same = [new.tensors(name)[key].tobytes() == old.tensors(name)[key].tobytes() for key in ("up", "down")]
        assert same == ([False, False] if ".zh." in name else [True, True]), name


def test_a_second_run_has_nothing_to_do(tuned, without_mindspore):
    words, folder, printed = tuned
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}

    again = without_mindspore(words)

    assert "train: up to date" in again
    assert again.splitlines()[-1] == printed.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_samples_continue_a_records_prompt(tuned, tmp_path, capsys):
    """The prompt does not contain the record's answer, which follows it in the held-out text."""
    _, folder, _ = tuned
    shutil.copytree(folder, tmp_path / "copy")
    run = options({"training.output_dir": str(tmp_path), "training.run_name": "copy"})
    words = ["--checkpoint", str(tmp_path / "copy"), *run]

    assert main(["generate", "--every-domain", "--max-new-tokens", "2", *words]) == 0

    (sample,) = json.loads((tmp_path / "copy" / "samples.json").read_text("utf-8"))["samples"]
    assert sample["domain"] == "zh"
    assert sample["prompt"].strip().endswith("打开\n答：")
    assert sample["prompt"].strip() in capsys.readouterr().out


@pytest.mark.slow
def test_domains_without_records_are_left_out_of_evaluation_and_samples(tuned, tmp_path, capsys):
    _, folder, _ = tuned
    shutil.copytree(folder, tmp_path / "copy")
    words = ["--checkpoint", str(tmp_path / "copy")]
    words += options({"training.output_dir": str(tmp_path), "training.run_name": "copy"})

    assert main(["evaluate", *words]) == 0

    assert "there is no held-out text of bilingual, code, en: left out" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "copy" / "evaluation.json").read_text())["domains"]
    (after,) = json.loads((folder / "finetune.json").read_text())["after"]["domains"]
    assert (result["domain"], result["tokens"], result["loss"]) == ("zh", after["tokens"], after["loss"])

    assert main(["generate", "--every-domain", "--max-new-tokens", "2", *words]) == 0
    samples = json.loads((tmp_path / "copy" / "samples.json").read_text())["samples"]
    assert [each["domain"] for each in samples] == ["zh"]


def test_errors_are_one_message(base, tuned, tmp_path, capsys):
    def refuse(message, *words):
        assert main(["finetune", "--checkpoint", str(base), *map(str, words)]) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.startswith("mindpangu: error: ")

    zh = write_records(tmp_path / "zh.jsonl")
    code = write_records(tmp_path / "code.jsonl", "code")
    refuse("matches no file", "--data", tmp_path / "no.jsonl")
    refuse("with --train experts:zh; records found: code 24", "--data", code, "--train", "experts:zh")
    refuse("training.train names 'fr'", "--data", zh, "--train", "experts:fr")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(zh.read_text("utf-8") + '{"domain": "zh", "task": "sing"}\n', "utf-8")
    refuse("bad.jsonl:25: \"task\" is 'sing'", "--data", bad, "--training.run_name", "bad")
    refuse("Choose another --training.run_name", "--data", code)  # base_finetuned has a training on other records
    refuse("there is no complete checkpoint", "--data", zh, "--checkpoint", tmp_path)
    refuse("--answers is -1", "--data", zh, "--answers", "-1")


def test_a_training_of_another_checkpoint_is_refused_before_its_result_is_touched(base, tuned, tmp_path, capsys):
    words, folder, _ = tuned
    result = (folder / "finetune.json").read_bytes()
    words = [str(folder) if word == str(base) else word for word in words]

    for more in ([], ["--resume"]):
        assert main([*words, "--training.run_name", folder.name, *more]) == 1
        assert f"holds a training that did not start from {folder}" in capsys.readouterr().err
        assert (folder / "finetune.json").read_bytes() == result


def test_the_error_for_several_tokenizers_names_a_remedy(base, tmp_path, capsys):
    tokenizer = extend(next(base.glob("tokenizer/*.model")).read_bytes(), ["<eot>", "<x>"], "other")
    (tmp_path / "other.model").write_bytes(tokenizer.model_bytes)
    model = str(tmp_path / "two_vocabularies")
    words = ["--checkpoint", str(base), "--out", model, "--tokenizer", str(tmp_path / "other.model")]
    assert main(["experts", "add", "law", "--fresh", "--control-token", "<x>", *words]) == 0
    data = str(write_records(tmp_path / "zh.jsonl"))

    assert main(["finetune", "--checkpoint", model, "--data", data]) == 1

    assert "`mindpangu extract` the domains of one vocabulary first" in capsys.readouterr().err


FILES = {
    "kdconv": ("kdconv", "sft/kdconv/film.dev.json", "zh"),
    "tatoeba": ("tatoeba", "sft/tatoeba/cmn.txt", "bilingual"),
    "mbpp": ("mbpp", "eval/mbpp/mbpp.jsonl", "code"),
}
SMALL = {
    "model.num_layers": "3",
    "model.hidden_size": "64",
    "model.seq_length": "96",
    "domains.experts_per_domain": "4",
    "training.steps": "60",
    "checkpoint.save_steps": "60",
    "monitor.heldout_samples": "48",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small Σ, trained briefly on the embedded corpus."""
    output = tmp_path_factory.mktemp("small")
    words = ["--config", str(ROOT / "recipes" / "cpu_smoke.yaml"), "--data.corpus", f"[{ROOT}/recipes/corpus/*.jsonl]"]
    words += options(SMALL | {"training.output_dir": str(output), "training.run_name": "small"})
    for stage in (["tokenizer", "train"], ["data", "prepare"], ["routing", "build"], ["train"]):
        assert main([*stage, *words]) == 0
    return output / "small"


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["experts", "all"])
@pytest.mark.parametrize("name", FILES)
def test_heldout_answers_of_published_files_improve(small, load_tool, tmp_path, monkeypatch, name, scope):
    kind, source, domain = FILES[name]
    if not (REAL / source).exists():
        pytest.skip(f"{REAL / source} is not here")
    records = tmp_path / f"{name}.jsonl"
    monkeypatch.setattr(sys, "argv", ["instruction_records.py", kind, str(REAL / source), str(records)])
    load_tool("instruction_records").main()
    train = "all" if scope == "all" else f"experts:{domain}"
    run = f"{name}_{scope}"
    words = ["--checkpoint", str(small), "--data", str(records), "--train", train, "--answers", "0"]

    assert main(["finetune", *words, "--training.steps", "60", "--training.run_name", run]) == 0

    report = json.loads((small.with_name(run) / "finetune.json").read_text("utf-8"))
    (before,) = report["before"]["domains"]
    (after,) = report["after"]["domains"]
    assert before["tokens"] == after["tokens"] > 300
    assert after["loss"] < before["loss"] - 0.1


@pytest.mark.parametrize(
    "name", ["😀.jsonl", "a\x85b.jsonl", "a\u2028b.jsonl", "\udcb2\udce2.jsonl", "[1] #x: 'y'.jsonl"]
)
def test_the_file_of_records_may_have_any_name(base, tmp_path, name):
    path = write_records(tmp_path / name)

    settings = finetune_settings(base, [str(path)], "experts:zh")

    assert load_config(None, {"data.corpus": settings["data.corpus"]}).data.corpus == [str(path)]
