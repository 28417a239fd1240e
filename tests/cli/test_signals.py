"""Every verb ends with the exit code of a signal, at any moment: one line, no traceback, no process left behind."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindpangu.signals import STOP_SIGNALS

PROJECT = Path(__file__).parents[2]
VERBS = {
    "tokenizer": ["tokenizer", "train"],
    "data": ["data", "prepare"],
    "routing": ["routing", "build"],
    "train": ["train"],
    "evaluate": ["evaluate"],
    "generate": ["generate", "--every-domain", "--checkpoint", "{source}"],
    "extract": ["extract", "--checkpoint", "{source}", "--domains", "zh", "--out", "{out}"],
    "finetune": ["finetune", "--checkpoint", "{source}", "--data", "{data}"],
    "tiny tokenizer": "tiny tokenizer --tokenizer {source}/tokenizer/main.model --size 400 --out {out}".split(),
    "tiny rounds": ["tiny", "rounds", "--rounds", "2", "--rate", "0.5", "--parts", "2"],
    "tiny architecture": "tiny architecture --model.rre_layers 0 --budget 30K --points 2 --depth 1:2 --width 8:32 "
    "--head-size 8 --tolerance 0.5 --processes 2 --out {out}".split(),
}
RECORD = '{"domain": "en", "task": "qa", "doc": "%s", "question": "open the file", "answer": "close the table"}\n'
NEEDS = {"data": ["tokenizer"], "routing": ["tokenizer", "data"]}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_signal_ends_a_verb_at_any_moment(trained, tiny_overrides, tmp_path, verb):
    rng = random.Random(f"{os.environ.get('SEED', 0)} {verb}")
    signum = rng.choice(STOP_SIGNALS)
    run = tmp_path / "run"
    names = {"source": trained.folder.root, "out": tmp_path / "out", "data": tmp_path / "records.jsonl"}
    names["data"].write_text("".join(RECORD % number for number in range(40)))
    words = [word.format(**names) for word in VERBS[verb]]
    overrides = tiny_overrides | {"training.output_dir": str(tmp_path), "training.run_name": "run"}
    if verb == "evaluate":
        shutil.copytree(trained.folder.root, run)
    elif verb in ("train", "tiny rounds", "tiny architecture"):
        shutil.copytree(Path(tiny_overrides["training.output_dir"]) / "prepared", run)
    else:
        for need in NEEDS.get(verb, []):
            shutil.copytree(Path(tiny_overrides["training.output_dir"]) / "prepared" / need, run / need)
    if verb in ("generate", "extract"):
        overrides = {}
    elif verb == "finetune":
        del overrides["data.corpus"]  # --data names it
    options = [word for key, value in overrides.items() for word in (f"--{key}", value)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mindpangu", *words, *options],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "MINDPANGU_DRILL": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for_handler(process)
    time.sleep(rng.uniform(0, 6))

    process.send_signal(signum)
    _, errors = process.communicate(timeout=120)

    if process.returncode == 0:
        pytest.skip("the verb was faster than the signal")
    assert process.returncode == 128 + signum, errors
    assert "Traceback" not in errors
    assert not processes_of(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def wait_for_handler(process):
    """Waits until the verb has installed its handlers."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught & 1 << (signal.SIGTERM - 1):
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def processes_of(folder):
    """Returns the processes that inherited a drill's variable; those that are about to end get a second."""
    mark = f"MINDPANGU_DRILL={folder}".encode()
    for _ in range(20):
        found = [path for path in Path("/proc").glob("[0-9]*/environ") if mark in read(path)]
        if not found:
            return []
        time.sleep(0.05)
    return found


def read(path):
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return []


INTERRUPTED_IMPORT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "mindpangu.cli.main":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python starts, unless Ctrl-C is ignored
sys.meta_path.insert(0, Interrupt())
from mindpangu.__main__ import main
sys.exit(main())
"""


def test_ctrl_c_while_the_command_line_is_imported_leaves_no_traceback():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, "config"],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
