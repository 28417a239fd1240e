"""Every file that a verb reads, damaged in every way: the verb says so in one message, or gives the same result."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import COMMANDS, READERS, RUN
from contents import leftovers, losses_of
from verbs import Outcome, options, run_verb

from mindpangu.checkpoint.fingerprint import Fingerprint

SECONDS = 60
REFUSING_SECONDS = 20  # on a loaded machine; a second or two on a free one

# ---- Damage ----------------------------------------------------------------------------------------------------------


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(max(1, path.stat().st_size))])


def empty(path, rng):
    path.write_bytes(b"")


def flip_a_bit(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def zero_a_block(path, rng):
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    stop = min(len(data), start + 512)
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)


def append_noise(path, rng):
    path.write_bytes(path.read_bytes() + rng.randbytes(64))


def noise(path, rng):
    path.write_bytes(rng.randbytes(1000))


def nest_deeply(path, rng):
    path.write_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def remove(path, rng):
    path.unlink()


def make_a_folder(path, rng):
    path.unlink()
    path.mkdir()


def make_a_pipe(path, rng):
    path.unlink()
    os.mkfifo(path)


def link_to_endless_zeros(path, rng):
    path.unlink()
    path.symlink_to("/dev/zero")


def link_to_the_file(path, rng):
    path.rename(path.with_name(f"real_{path.name}"))
    path.symlink_to(f"real_{path.name}")


def change_a_value(path, rng):
    """Replaces a random value in a JSON file; in other files, flips a bit."""
    if path.suffix != ".json":
        flip_a_bit(path, rng)
        return
    tree = json.loads(path.read_text("utf-8"))
    holders = [(tree, key) for key in tree]
    for holder, key in holders:
        if isinstance(holder[key], dict | list):
            inside = holder[key]
            holders += [(inside, key) for key in (inside if isinstance(inside, dict) else range(len(inside)))]
    holder, key = rng.choice(holders)
    holder[key] = rng.choice(HOSTILE)
    path.write_text(json.dumps(tree), "utf-8")


HOSTILE = (None, True, -7, 10**40, 0.5, float("nan"), "", "7", "../../x", "x" * 5_000_000, [], {}, [[]], {"a": {}})

DAMAGES = (
    truncate,
    empty,
    flip_a_bit,
    zero_a_block,
    append_noise,
    noise,
    nest_deeply,
    change_a_value,
    remove,
    make_a_folder,
    make_a_pipe,
    link_to_endless_zeros,
    link_to_the_file,
)


def sign_again(path: Path) -> None:
    """Puts the size and hash of a damaged file into the manifest of its checkpoint, as a forger would."""
    checkpoint = next(parent for parent in path.parents if (parent / "manifest.json").exists())
    manifest = checkpoint / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["files"][str(path.relative_to(checkpoint))] = Fingerprint.from_chunks([path.read_bytes()])
    manifest.write_text(json.dumps(tree))


# ---- Verbs that read -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A verb that reads damaged files.

    Attributes:
        words: the command line.
        result: reads what must not depend on the damage if the verb succeeds.
        after: name of the command that has already run in the sandbox; None for a pristine one.
        is_quick: True if the quick tests run it.
        keeps: names of the run folders that it may leave when it fails, with the stages that are complete.
    """

    words: tuple[str, ...]
    result: Callable[[Path, Outcome], Any] = lambda box, outcome: None
    after: str | None = None
    is_quick: bool = False
    keeps: frozenset[str] = frozenset()


def once_more(name: str, after: str | None = None) -> Reading:
    """Returns the reading of a command that runs in a pristine sandbox, or once more after it has run (`after`)."""
    command = COMMANDS[name]
    words = (*command.words, *command.resume) if after else command.words
    keeps = frozenset({command.out} if command.again == "resumes" else ())
    return Reading(words, lambda box, outcome: command.result(box / command.out), after, command.is_quick, keeps)


READINGS = {
    "train": Reading(
        ("train", "--resume", *options(RUN | {"training.steps": "7"})),
        lambda box, outcome: [step for step in losses_of(box / "run") if step[0] > int(RUN["training.steps"])],
    ),
    "evaluate": Reading(  # with other samples than the existing evaluation, which would be up to date
        ("evaluate", *options(RUN | {"monitor.heldout_samples": "2"})),
        lambda box, outcome: json.loads((box / "run" / "evaluation.json").read_text("utf-8")),
    ),
    "generate": Reading(READERS["generate --prompt"], lambda box, outcome: outcome.output.split("generate:")[0]),
    "list": Reading(READERS["experts list"], is_quick=True),
    "config": Reading(READERS["config"], is_quick=True),
    "tokenizer": once_more("tokenizer train"),
    "data": once_more("data prepare"),
    "routing": once_more("routing build"),
    "extract": once_more("extract --verify"),
    "export": once_more("extract --export"),
    "vocabulary": once_more("extract --vocabulary-of"),
    "resize": once_more("experts resize"),
    "add": once_more("experts add --from-dense"),
    "upcycle": once_more("upcycle"),
    "inherit": once_more("tiny inherit"),
    "to-pangu-alpha": once_more("convert to-pangu-alpha"),
    "from-pangu-alpha": once_more("convert from-pangu-alpha"),
    "finetune": once_more("finetune"),
    "finetune again": once_more("finetune", after="finetune"),
    "rounds again": Reading(
        (*COMMANDS["tiny rounds"].words, "--resume"), lambda box, outcome: losses_of(box / "out"), after="tiny rounds"
    ),
    "architecture again": once_more("tiny architecture", after="tiny architecture"),
}

CHECKPOINT = "run/checkpoint/iteration_*"
FILES = {
    f"{CHECKPOINT}/manifest.json": "train evaluate generate list extract export resize",
    f"{CHECKPOINT}/state.json": "train evaluate extract resize",
    f"{CHECKPOINT}/config.yaml": "train evaluate generate list extract",
    f"{CHECKPOINT}/dense_*.safetensors": "train evaluate generate extract export",
    f"{CHECKPOINT}/experts/*.safetensors": "train evaluate generate extract export resize",
    f"{CHECKPOINT}/routing/*.safetensors": "train evaluate generate list extract export resize",
    f"{CHECKPOINT}/tokenizer/main.model": "train generate extract export",
    "run/data/index.json": "train evaluate data routing vocabulary",
    "run/data/stage.json": "data",
    "run/data/*.train.bin": "train data routing vocabulary",
    "run/data/*.heldout.bin": "train evaluate data vocabulary",
    "run/routing/stage.json": "routing",
    "run/routing/*.safetensors": "train routing upcycle",
    "run/tokenizer/stage.json": "tokenizer",
    "run/tokenizer/main.model": "train tokenizer data upcycle",
    "run/latest_checkpointed_iteration.txt": "train",
    "run/metrics.jsonl": "train",
    "run/config.yaml": "config",
    "run/evaluation.json": "train evaluate",
    "run/samples.json": "train",
    "corpus.jsonl": "tokenizer data",
    "records.jsonl": "finetune",
    "dense/checkpoint/iteration_*/dense_*.safetensors": "add upcycle inherit to-pangu-alpha",
    "release/pangu_alpha.ckpt": "from-pangu-alpha",
    "release/vocab.model": "from-pangu-alpha",
    "out/finetune.json": "finetune again",
    "out/rounds/*.safetensors": "rounds again",
    "out/points.json": "architecture again",
    "out/*/trial.json": "architecture again",
}
"""Pattern of damaged files → the verbs that read them."""

SLOW = (  # read by verbs that compile and mostly do not need the file or make it again: only some kinds of damage
    "run/latest_checkpointed_iteration.txt",
    "run/metrics.jsonl",
    "run/evaluation.json",
    "run/samples.json",
    "records.jsonl",
    "out/finetune.json",
    "out/rounds/*.safetensors",
    "out/points.json",
    "out/*/trial.json",
)
UNPROTECTED = (  # no hash tells damage from another value
    "run/config.yaml",
    "corpus.jsonl",
    "records.jsonl",
    "release/pangu_alpha.ckpt",
    "release/vocab.model",
    "out/finetune.json",
    "out/points.json",
    "out/*/trial.json",
)


def readings_of(pattern: str) -> list[str]:
    """Returns the names of the verbs that read the files of a pattern."""
    if "again" in FILES[pattern]:
        return [FILES[pattern]]
    return FILES[pattern].split()


def cases(drill) -> list[tuple[str, Callable, bool, str]]:
    """Returns (pattern of files, damage, whether the manifest is forged, name of the verb that reads the file)."""
    found = []
    for pattern in FILES:
        names = [name for name in readings_of(pattern) if drill.makes_all or READINGS[name].is_quick]
        forgeable = "checkpoint/" in pattern and "manifest" not in pattern
        for damage in drill.rng.sample(DAMAGES, 3) if pattern in SLOW else DAMAGES:
            for signed in (False, True) if forgeable else (False,):
                found += [(pattern, damage, signed, drill.rng.choice(names))] if names else []
    return found


@pytest.fixture(scope="module")
def undamaged(sandboxes, tmp_path_factory):
    """undamaged(name) returns the result of a verb on files that are whole."""
    found = {}

    def result(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("undamaged")
            reading = READINGS[name]
            box = sandboxes.new(folder, after=reading.after)
            outcome = run_verb(reading.words, folder / "log.txt", cwd=box)
            outcome.require_success()
            found[name] = reading.result(box, outcome)
            shutil.rmtree(folder)
        return found[name]

    return result


def test_every_kind_of_file_damaged_in_every_way(drill, sandboxes, undamaged, tmp_path):
    """Time of an attempt: 1 s; 10 s if a verb that compiles does not need the file.

    A file with a forged hash may hold any values, so only how the verb ends is checked.
    """
    for pattern, damage, signed, name in drill.some_of(cases(drill), quick=10, full=280):
        reading = READINGS[name]
        description = f"{pattern}, {damage.__name__}{', signed' * signed}, {name}"
        with drill.attempt(f"corruption: {Path(pattern).name}", description):
            box = sandboxes.new(tmp_path, after=reading.after)
            path = drill.rng.choice(sorted(box.glob(pattern))[-4:])
            damage(path, drill.rng)
            if signed and path.is_file() and not path.is_symlink():
                sign_again(path)
            before = {entry.name for entry in box.iterdir()}

            outcome = run_verb(reading.words, tmp_path / "log.txt", SECONDS, cwd=box)

            if outcome.code != 0:
                outcome.require_one_message()
                assert outcome.seconds < REFUSING_SECONDS, f"{outcome.seconds:.0f} s"
                assert before <= {entry.name for entry in box.iterdir()} <= before | reading.keeps
                assert not any(leftovers(box / name) for name in reading.keeps)
            elif not signed and pattern not in UNPROTECTED:
                assert reading.result(box, outcome) == undamaged(name)
            assert {entry.name for entry in tmp_path.iterdir()} <= {"box", "log.txt"}
