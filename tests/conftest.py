"""Fixtures for all tests: a corpus of four tiny domains, and run folders prepared and trained from it."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("GLOG_v", "3")

# no limit on the time of an example: on a machine with other work it fails tests that are right
settings.register_profile("mindpangu", deadline=None)
settings.load_profile("mindpangu")

# Files that take a minute or two. They start first, so that parallel test processes finish at about the same time.
SLOW_FILES = ("train/test_resume", "train/test_ecss", "docs/test_docs", "parallel/test_layouts", "test_readme")

TINY = {
    "model.num_layers": "3",
    "model.rre_layers": "2",
    "model.hidden_size": "16",
    "model.num_heads": "2",
    "model.seq_length": "16",
    "model.vocab_size": "420",
    "domains.experts_per_domain": "3",
    "training.local_batch_size": "4",
    "training.steps": "6",
    "lr_scheduler.warmup_steps": "2",
    "checkpoint.save_steps": "2",
    "monitor.heldout_samples": "4",
    "data.heldout_fraction": "0.2",
}

_drills = {}  # kind of attempt → tried, failed, (seconds of the slowest, and which one it was)


def pytest_addoption(parser):
    parser.addoption(
        "--drills", action="store_true", help="Make all attempts of the drills, not only a few of each kind."
    )


def pytest_collection_modifyitems(items):
    items.sort(
        key=lambda item: not item.path.with_suffix("").as_posix().endswith(SLOW_FILES)
    )  # keeps the order otherwise


def pytest_runtest_logreport(report):
    """Adds up the attempts of the drills, whichever test process made them; see tests/drills/conftest.py."""
    for name, value in report.user_properties if report.when == "teardown" else ():
        if name == "drill":
            kind, tried, failed, *slowest = value
            count = _drills.setdefault(kind, [0, 0, [0.0, ""]])
            count[0] += tried
            count[1] += failed
            count[2] = max(count[2], slowest)


def pytest_terminal_summary(terminalreporter):
    if not _drills:
        return
    terminalreporter.section("drills")
    terminalreporter.line(f"{'kind':<40} {'tried':>6} {'held':>6} {'failed':>6}   slowest attempt")
    for kind, (tried, failed, (seconds, which)) in sorted(_drills.items()):
        counts = f"{kind:<40} {tried:>6} {tried - failed:>6} {failed:>6}"
        terminalreporter.line(f"{counts}   {seconds:.1f} s: {which}")
    tried, failed = (sum(count[column] for count in _drills.values()) for column in (0, 1))
    terminalreporter.line(f"{'all':<40} {tried:>6} {tried - failed:>6} {failed:>6}")


@pytest.fixture(scope="session")
def load_tool():
    """load_tool(name) imports tools/<name>.py and returns the module."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def without_mindspore():
    """without_mindspore(*commands) returns their output in a new process; fails if they import MindSpore."""

    def run(*commands):
        script = (
            "import sys; from mindpangu.cli.main import main\n"
            f"for words in {commands!r}: assert main(words) == 0\n"
            "assert 'mindspore' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def pangu_pi():
    """Overrides that give a model PanGu-π's parts."""
    return {
        "model.query_layer": "false",
        "model.position": "rope",
        "model.norm": "rmsnorm",
        "model.activation": "swiglu",
        "model.series_terms": "2",
        "model.shortcut_reduction": "4",
        "model.biases": "false",
        "model.tied_head": "false",
    }


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """A jsonl file with 60 documents in each of the four domains, the same in every session."""
    rng = random.Random(0)
    english = ["open", "close", "the", "window", "table", "red", "blue", "file", "row", "and", "then", "save"]
    chinese = ["打开", "关闭", "窗口", "表格", "红色", "文件", "保存", "然后", "，", "。"]
    records = []
    for doc in range(60):
        words = " ".join(rng.choices(english, k=30))
        signs = "".join(rng.choices(chinese, k=30))
        code = "".join(f"def f{rng.randrange(9)}(x):\n    return x + {rng.randrange(99)}\n" for _ in range(5))
        records += [
            {"domain": "en", "doc": str(doc), "source": "tiny", "text": words},
            {"domain": "zh", "doc": str(doc), "source": "tiny", "text": signs},
            {"domain": "bilingual", "doc": str(doc), "source": "tiny", "en": words, "zh": signs},
            {"domain": "code", "doc": str(doc), "source": "tiny", "text": code, "lang": "python"},
        ]
    path = tmp_path_factory.mktemp("corpus") / "tiny.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_overrides(tiny_corpus, tmp_path_factory):
    """Overrides of a tiny PanGu-Σ with prepared tokenizer, data, and routing table. Copy them to change run_name."""
    from mindpangu.config import load_config
    from mindpangu.data.prepare import prepare_routing, prepare_shards, prepare_tokenizer

    output = tmp_path_factory.mktemp("output")
    overrides = TINY | {
        "data.corpus": f"[{tiny_corpus}]",
        "training.output_dir": str(output),
        "training.run_name": "prepared",
    }
    config = load_config(None, overrides)
    for prepare in (prepare_tokenizer, prepare_shards, prepare_routing):
        prepare(config, log=lambda text: None)
    return overrides


@pytest.fixture(scope="session")
def trained(tiny_overrides, tmp_path_factory):
    """A run of the tiny PanGu-Σ after 160 steps, which has learned its corpus. Do not train it any further."""
    from mindpangu.config import load_config
    from mindpangu.train.run import open_run, set_device, train

    parent = tmp_path_factory.mktemp("trained")
    shutil.copytree(Path(tiny_overrides["training.output_dir"]) / "prepared", parent / "run")
    overrides = tiny_overrides | {
        "training.output_dir": str(parent),
        "training.run_name": "run",
        "training.steps": "160",
        "lr_scheduler.learning_rate": "1e-2",
    }
    config = load_config(None, overrides)
    set_device(config)
    run = open_run(config)
    train(run, log=lambda text: None)
    return run


@pytest.fixture
def tiny_run(tiny_overrides, tmp_path):
    """(overrides, run folder) of a new copy of the prepared run, for a test to train in."""
    source = Path(tiny_overrides["training.output_dir"]) / "prepared"
    shutil.copytree(source, tmp_path / "run")
    return tiny_overrides | {"training.output_dir": str(tmp_path), "training.run_name": "run"}, tmp_path / "run"
