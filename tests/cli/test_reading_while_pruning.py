"""Verbs that read a run whose training saves and prunes at the same time take its newest checkpoint again.

The moments are chosen here; in tests/drills/test_reading_while_pruning.py they are those that happen.
"""

import os
import shutil
import sys
import threading

import pytest

from mindpangu.checkpoint import list_iterations, prune
from mindpangu.cli.main import main
from tests.lifecycle.conftest import train_tiny

STEPS = 6

LINKING_VERBS = {
    "extract": ["extract", "--domains", "zh,code"],
    "extract --verify": ["extract", "--domains", "zh", "--verify"],
    "extract --weights-only": ["extract", "--domains", "zh", "--weights-only"],
    "extract --export": ["extract", "--domains", "zh", "--export"],
    "experts add": ["experts", "add", "poetry", "--from", "zh"],
    "experts copy": ["experts", "copy", "zh", "--from", "en"],
    "experts resize": ["experts", "resize", "zh", "--experts", "2"],
}


@pytest.fixture(scope="module")
def source(tiny_overrides, tmp_path_factory):
    """A run with a checkpoint of each of its steps."""
    every = {"checkpoint.save_steps": "1", "checkpoint.keep_last": str(STEPS), "training.steps": str(STEPS)}
    return train_tiny(tiny_overrides, tmp_path_factory.mktemp("source"), "run", **every)


class LiveRun:
    """A copy of a run that saves its next checkpoint and prunes the one before it when told to, or in the middle of a
    verb: just before the verb opens or links a file of the newest checkpoint for the n-th time."""

    def __init__(self, source, folder):
        self.folder = folder
        self.checkpoints = folder / "checkpoint"
        self.coming = folder / "coming"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoint"))
        shutil.copytree(source / "checkpoint", self.coming, copy_function=os.link)
        self.checkpoints.mkdir()
        self.prune_at = []
        self.num_accesses = 0
        self.save_and_prune()

    @property
    def newest(self):
        return list_iterations(self.checkpoints)[-1]

    def save_and_prune(self):
        following = min(self.coming.iterdir())
        following.rename(self.checkpoints / following.name)
        prune(self.checkpoints, 1)

    def on_access(self, path):
        if not path.startswith(f"{self.newest}{os.sep}"):
            return
        self.num_accesses += 1
        if self.num_accesses in self.prune_at:
            self.prune_at.remove(self.num_accesses)
            self.num_accesses = 0
            self.save_and_prune()


_live_runs: list[LiveRun] = []
_lock = threading.RLock()  # verbs read in threads
_in_hook = False


def _hook(event, arguments):
    """Tells the live run of every file that Python opens or links. An audit hook cannot be removed."""
    global _in_hook
    if not _live_runs or event not in ("open", "os.link") or not isinstance(arguments[0], str | os.PathLike):
        return
    with _lock:
        if not _in_hook:
            _in_hook = True
            try:
                _live_runs[0].on_access(os.fspath(arguments[0]))
            finally:
                _in_hook = False


@pytest.fixture(scope="module", autouse=True)
def audited():
    sys.addaudithook(_hook)
    yield
    _live_runs.clear()


@pytest.fixture
def live(source, tmp_path):
    run = LiveRun(source, tmp_path / "run")
    _live_runs[:] = [run]
    yield run
    _live_runs.clear()


def accesses_of(live, words):
    """Counts the files of the checkpoint that a verb opens or links."""
    live.num_accesses = 0
    assert main(words) == 0
    count = live.num_accesses
    live.num_accesses = 0
    return count


@pytest.mark.parametrize("moment", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("words", LINKING_VERBS.values(), ids=LINKING_VERBS)
def test_a_verb_takes_the_newest_checkpoint_again(live, tmp_path, capsys, words, moment):
    words = [*words, "--checkpoint", str(live.folder), "--out"]
    count = accesses_of(live, [*words, str(tmp_path / "first")])
    first = live.newest.name
    live.prune_at = [2 + int(moment * (count - 2))]  # the first is the manifest

    assert main([*words, str(tmp_path / "second")]) == 0

    assert live.newest.name > first
    message = f"{first} was removed while it was being read; reading the newest checkpoint instead"
    assert message in capsys.readouterr().err
    assert main([*words, str(tmp_path / "third")]) == 0
    assert contents(tmp_path / "second") == contents(tmp_path / "third") != contents(tmp_path / "first")


def contents(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("state.json", "manifest.json")  # they name the checkpoint and --out
    }


def test_listing_experts_takes_the_newest_checkpoint_again(live, capsys):
    words = ["experts", "list", "--checkpoint", str(live.folder)]
    count = accesses_of(live, words)
    live.prune_at = [count // 2]

    assert main(words) == 0

    assert "reading the newest checkpoint instead" in capsys.readouterr().err


def test_a_checkpoint_that_the_user_named_is_not_replaced(live, tmp_path, capsys):
    named = live.newest
    words = ["extract", "--domains", "zh", "--checkpoint", str(named), "--out", str(tmp_path / "out")]
    live.prune_at = [10]

    assert main(words) == 1

    error = capsys.readouterr().err
    assert error.startswith(f"mindpangu: error: {named} was removed while it was being read; ")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_training_that_prunes_too_fast_is_named(live, tmp_path, capsys):
    words = ["extract", "--domains", "zh", "--checkpoint", str(live.folder), "--out", str(tmp_path / "out")]
    live.prune_at = [5] * 5  # of every try

    assert main(words) == 1

    error = capsys.readouterr().err
    assert error.count("reading the newest checkpoint instead") == 4
    assert "the training prunes them faster than they can be read. Raise its checkpoint.keep_last" in error
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("access", [2, 10, 18])
@pytest.mark.parametrize(
    "words",
    [["evaluate"], ["generate", "--domain", "zh", "--prompt", "打开", "--max-new-tokens", "4"], ["train", "--load"]],
    ids=["evaluate", "generate", "train --load"],
)
def test_a_verb_that_computes_takes_the_newest_checkpoint_again(live, tmp_path, capsys, words, access):
    """generate reads experts while it generates."""
    if words[0] == "train":
        shutil.copytree(live.folder, tmp_path / "new", ignore=shutil.ignore_patterns("checkpoint", "coming", "*.jsonl"))
        words = [*words, str(live.folder), "--config", str(tmp_path / "new" / "config.yaml"), "--training.steps", "1"]
        words += ["--training.run_name", "new", "--lr_scheduler.warmup_steps", "0", "--lr_scheduler.decay_steps", "1"]
        (tmp_path / "new" / "latest_checkpointed_iteration.txt").unlink()
    else:
        words = [*words, "--checkpoint", str(live.folder), "--training.run_name", "run"]
    words += ["--training.output_dir", str(tmp_path)]
    live.prune_at = [access]

    assert main(words) == 0

    printed = capsys.readouterr()
    assert not live.prune_at
    if words[0] == "train":
        assert "started from the weights of" in printed.out
        assert "iteration_00000002" in printed.out
    else:
        assert "reading the newest checkpoint instead" in printed.err
