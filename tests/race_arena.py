"""Lets two processes write the same thing at random moments, many times, and looks at what comes of it.

    python tests/race_arena.py KIND RACES SEED

Prints the counts as JSON, and every problem in a line of its own. `test_races.py` runs it, in an empty folder. In every
second race, one of the two writers is killed at a random moment. The writers are forked from this process, which has
loaded everything they need, so that a race takes milliseconds; MindSpore is never loaded.
"""

import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mindpangu.checkpoint import CheckpointReader
from mindpangu.cli.main import main as mindpangu
from mindpangu.errors import MindPanguError
from mindpangu.files import link_folder, scratch_files, write_bytes_atomically, write_durably

OLDER = Path(__file__).parent / "fixtures" / "written_by_0_1_0"
OUT = Path("out")
PIECES = 50

# what the verbs import when they need it
LOADED = (
    "matplotlib.backends.backend_agg",
    "mindpangu.data.prepare",
    "mindpangu.lifecycle.add",
    "mindpangu.lifecycle.export",
    "mindpangu.lifecycle.extract",
    "mindpangu.lifecycle.resize",
    "mindpangu.tiny.tokenizer.compaction",
    "mindpangu.tokenizer.extend",
)


def verb(*words: str) -> Callable[[int], None]:
    """Returns a writer that runs a verb of the command line."""

    def run(who: int) -> None:
        os._exit(mindpangu(words))

    return run


def write_file(who: int) -> None:
    write_bytes_atomically(OUT / "file", pieces(who))


def write_several_files(who: int) -> None:
    with scratch_files(OUT) as scratch:
        for name in "abc":
            write_durably(scratch / name, pieces(who))


def link(who: int) -> None:
    link_folder(Path("run/data"), OUT)


def pieces(who: int) -> Iterator[bytes]:
    """Yields the content of a file slowly, so that another process has time to do the same."""
    for _ in range(PIECES):
        time.sleep(0.001)
        yield bytes([who])


def is_checkpoint() -> bool:
    reader = CheckpointReader(OUT)
    for name in reader.files:
        reader.read(name)
    return True


def is_one_writers() -> bool:
    return all(path.read_bytes() in [bytes([who]) * PIECES for who in range(3)] for path in OUT.iterdir())


def is_linked() -> bool:
    return tree(OUT) == tree(Path("run/data"))


def is_stage() -> bool:
    return True  # the third writer finds it up to date


@dataclass(frozen=True)
class Kind:
    """One thing that two processes may write at the same time.

    Attributes:
        write: writes it; gets the number of the writer. Ends with an error if it may not.
        is_whole: true if what was written is complete, and all of it from one writer.
        once: true if it is never written again once it is there: exactly one writer succeeds. Else the second one waits
            for the first.
    """

    write: Callable[[int], None]
    is_whole: Callable[[], bool]
    once: bool = True


FROM = ("--checkpoint", "run", "--out", str(OUT))
STAGE = ("--config", "run/config.yaml", "--training.run_name", str(OUT), "--training.output_dir", ".")

KINDS = {
    "extract": Kind(verb("extract", "--domains", "zh,code", *FROM), is_checkpoint),
    "extract --export": Kind(verb("extract", "--domains", "zh", "--export", *FROM), lambda: len(tree(OUT)) == 3),
    "experts add": Kind(verb("experts", "add", "poetry", "--from", "zh", *FROM), is_checkpoint),
    "experts remove": Kind(verb("experts", "remove", "zh", *FROM), is_checkpoint),
    "tiny tokenizer": Kind(
        verb(
            *("tiny", "tokenizer", "--tokenizer", "run/tokenizer/signs.model", "--size", "390"),
            *("--corpus", "corpus.jsonl", "--out", str(OUT)),
        ),
        lambda: {"tokenizer.model", "report.json", "curve.png", "counts.safetensors"} == set(os.listdir(OUT)),
        once=False,
    ),
    "tokenizer extend": Kind(
        verb(
            "tokenizer", "extend", "--model", "run/tokenizer/signs.model", "--out", str(OUT / "sub" / "extended.model")
        ),
        lambda: len(tree(OUT)) == 1,
        once=False,
    ),
    "tokenizer train": Kind(verb("tokenizer", "train", *STAGE), is_stage, once=False),
    "file": Kind(write_file, is_one_writers, once=False),
    "several files": Kind(write_several_files, is_one_writers, once=False),
    "linked folder": Kind(link, is_linked),
}


def tree(folder: Path) -> dict[str, str]:
    """Returns the relative path of every file → its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start(kind: Kind, who: int, delay: float) -> int:
    """Starts a writer in a process of its own, after `delay` seconds; returns its id. Its output goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        log = os.open(f"log_{who}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        time.sleep(delay)
        try:
            kind.write(who)
            code = 0
        except (MindPanguError, OSError) as error:
            print(f"mindpangu: error: {error}")
            code = 1
        sys.stdout.flush()
    finally:
        os._exit(code)


def finish(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def messages(who: int) -> list[str]:
    lines = Path(f"log_{who}").read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith(("mindpangu: error", "Traceback")) or "Error" in line]


def leftovers() -> list[str]:
    return [
        str(path)
        for path in Path().rglob(".*")
        if path.name.endswith((".writing", ".former", ".deleting", ".lock", ".locked"))
    ]


def run_race(kind: Kind, kill: bool, longest: float, rng: random.Random) -> tuple[bool, list[str]]:
    """Runs one race. Returns whether a writer was killed before its end, and the problems."""
    problems = []
    # Most often the writers are a few milliseconds apart, so that they do the same at the same time.
    writers = [start(kind, who, longest * rng.random() ** 4) for who in (0, 1)]
    if kill:
        time.sleep(rng.uniform(0, 1.5 * longest))
        with contextlib.suppress(ProcessLookupError):
            os.kill(writers[0], signal.SIGKILL)
    codes = [finish(pid) for pid in writers]
    killed = codes[0] == -signal.SIGKILL

    for who, code in enumerate(codes):
        if code not in (0, 1) and not (killed and who == 0):
            problems.append(f"writer {who} ended with {code}")
        if code == 1 and len(messages(who)) != 1:
            problems.append(f"writer {who} failed with {len(messages(who))} messages: {messages(who)}")
    if not killed and (codes.count(0) != 1 if kind.once else 0 not in codes):
        problems.append(f"the writers ended with {codes}: {messages(0) + messages(1)}")

    there = OUT.exists() and bool(tree(OUT)) and 0 in codes
    code = finish(start(kind, 2, 0))
    if kind.once and there and code != 1:
        problems.append(f"a third writer ended with {code} although all was written")
    if not there and code != 0 and not killed:
        problems.append(f"a third writer ended with {code}: {messages(2)}")
    if not kind.once and code != 0:
        problems.append(f"a third writer ended with {code}: {messages(2)}")
    try:
        whole = kind.is_whole()
    except (MindPanguError, OSError) as error:
        whole = False
        problems.append(str(error))
    if not whole:
        problems.append("what was written is not whole")
    if kind.is_whole is is_stage and there and "up to date" not in Path("log_2").read_text():
        problems.append("the stage is not up to date")
    if left := leftovers():
        problems.append(f"left behind: {left}")
    return killed, problems


def main() -> int:
    name, races, seed = sys.argv[1:]
    kind = KINDS[name]
    for module in LOADED:
        importlib.import_module(module)
    shutil.copytree(OLDER, ".", dirs_exist_ok=True)
    source = tree(Path("run"))
    rng = random.Random(int(seed))
    times = []
    for _ in range(2):
        shutil.rmtree(OUT, ignore_errors=True)
        started = time.monotonic()
        assert finish(start(kind, 2, 0)) == 0, Path("log_2").read_text()
        times.append(time.monotonic() - started)
    longest = min(times)
    counts = {"races": 0, "killed": 0, "failed": 0}
    for number in range(int(races)):
        shutil.rmtree(OUT, ignore_errors=True)
        killed, problems = run_race(kind, number % 2 == 1, longest, rng)
        if tree(Path("run")) != source:
            problems.append("a file of the source changed")
        counts["races"] += 1
        counts["killed"] += killed
        counts["failed"] += bool(problems)
        for problem in problems:
            print(f"race {number}: {problem}", file=sys.stderr)
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
