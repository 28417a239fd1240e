"""Fixtures for all tests: a corpus of four tiny domains, and run folders prepared and trained from it."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("GLOG_v", "3")

# how long an example takes depends on what else the machine does
hypothesis.settings.register_profile("any_machine", deadline=None)
hypothesis.settings.load_profile("any_machine")

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


def pytest_collection_modifyitems(items):
    items.sort(
        key=lambda item: not item.path.with_suffix("").as_posix().endswith(SLOW_FILES)
    )  # keeps the order otherwise


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
