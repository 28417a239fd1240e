"""Every file of a run is damaged in every way: a verb that reads it says so in one message, or did not need it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from contents import losses_of
from verbs import options, run_verb

from mindpangu.checkpoint.fingerprint import Fingerprint

FILES = (
    "checkpoint/iteration_*/manifest.json",
    "checkpoint/iteration_*/state.json",
    "checkpoint/iteration_*/config.yaml",
    "checkpoint/iteration_*/dense_*.safetensors",
    "checkpoint/iteration_*/experts/*.safetensors",
    "checkpoint/iteration_*/routing/*.safetensors",
    "checkpoint/iteration_*/tokenizer/main.model",
    "data/index.json",
    "data/stage.json",
    "data/*.bin",
    "routing/stage.json",
    "routing/*.safetensors",
    "tokenizer/stage.json",
    "tokenizer/main.model",
    "latest_checkpointed_iteration.txt",
    "metrics.jsonl",
    "config.yaml",
    "evaluation.json",
    "samples.json",
)


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


def link_elsewhere(path, rng):
    elsewhere = path.parent.with_name("elsewhere")
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


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
    link_elsewhere,
)

VERBS = {
    "train": ["train", "--resume", "--training.steps", "7"],
    "evaluate": ["evaluate"],
    "generate": ["generate", "--domain", "en", "--prompt", "open the", "--max-new-tokens", "4"],
    "extract": ["extract", "--domains", "zh", "--verify"],
    "list": ["experts", "list"],
    "routing": ["routing", "build"],
}
SECONDS = 60
REFUSING_SECONDS = 20  # on a loaded machine; a second or two on a free one


def command(verb, overrides, folder, out):
    """Returns the words of a verb that works on a run folder."""
    words = VERBS[verb]
    if verb == "extract":
        return [*words, "--checkpoint", folder, "--out", out]
    if verb == "list":
        return [*words, "--checkpoint", folder]
    return [*words, *options(overrides)]


def results(verb, outcome, folder, out):
    """Returns what must not depend on the damage, if a verb succeeds."""
    if verb == "train":
        return losses_of(folder)[6:]
    if verb == "extract":
        return sorted(path.name for path in out.rglob("*"))
    if verb == "generate":
        return outcome.output.split("generate:")[0]
    return None


@pytest.fixture(scope="module")
def undamaged(finished, tmp_path_factory):
    """Verb → its results on the run as it is."""
    overrides, source = finished
    parent = tmp_path_factory.mktemp("undamaged")
    found = {}
    for verb in VERBS:
        shutil.copytree(source, parent / "run")
        here = overrides | {"training.output_dir": str(parent)}
        outcome = run_verb(command(verb, here, parent / "run", parent / "out"), parent / "log.txt")
        outcome.require_success()
        found[verb] = results(verb, outcome, parent / "run", parent / "out")
        shutil.rmtree(parent / "run")
    return found


def sign_again(checkpoint: Path, path: Path) -> None:
    """Puts the size and hash of a damaged file into the manifest, as its forger would."""
    manifest = checkpoint / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["files"][str(path.relative_to(checkpoint))] = Fingerprint.from_chunks([path.read_bytes()])
    manifest.write_text(json.dumps(tree))


def test_every_kind_of_file_damaged_in_every_way(drill, undamaged, copy_of_run, tmp_path):
    cases = [(pattern, damage, signed) for pattern in FILES for damage in DAMAGES for signed in (False, True)]
    cases = [case for case in cases if not case[2] or (case[0].startswith("checkpoint") and "manifest" not in case[0])]
    for pattern, damage, signed in drill.some_of(cases, quick=10):
        overrides, folder = copy_of_run()
        path = drill.rng.choice(sorted(folder.glob(pattern))[-4:])
        damage(path, drill.rng)
        if signed and path.is_file() and not path.is_symlink():
            sign_again(folder / "/".join(Path(pattern).parts[:1]) / path.relative_to(folder).parts[1], path)
        verb = drill.rng.choice(sorted(VERBS))
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        kind = f"corruption: {Path(pattern).name}"
        with drill.attempt(kind, f"{path.relative_to(folder)}, {damage.__name__}, signed {signed}, {verb}"):
            outcome = run_verb(command(verb, overrides, folder, out), tmp_path / "log.txt", SECONDS)
            if outcome.code == 0:
                assert results(verb, outcome, folder, out) == undamaged[verb]
            else:
                outcome.require_one_message()
                assert outcome.seconds < REFUSING_SECONDS, f"{outcome.seconds:.0f} s"
                assert not out.exists()
            assert {entry.name for entry in tmp_path.iterdir()} <= {"runs", "out", "log.txt"}
