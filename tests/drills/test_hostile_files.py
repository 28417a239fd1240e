"""Forged checkpoints, conversions, and other files: read or refused in one message; nothing else is touched."""

import json
import time

import pytest
from commands import COMMANDS
from contents import content_of
from verbs import run_verb

from tests.fuzz.mutations import mutate
from tests.fuzz.readers import READERS, make_sandbox, read_forged

LONGEST_MESSAGE = 1500  # characters; a path takes about a hundred
LEADS_OUT = (
    "dense_x/../../../../stolen",
    "dense_00000_of_00001.safetensors/../../../../stolen",
    "../../../stolen",
    "experts/rre_00.zh.000.safetensors/../../../../../stolen",
    "experts/rre_00.../../../../../x.000.safetensors",
    "routing/../../../../stolen.safetensors",
    "tokenizer/../../../../stolen.model",
)
VERBS = (
    "extract",
    "extract --export",
    "extract --vocabulary-of",
    "experts add --from",
    "experts replace",
    "experts resize",
    "tiny tokenizer",
)


@pytest.mark.parametrize("name", READERS)
def test_forged_files(drill, tmp_path, name):
    """Mutates a real file of each kind; a checkpoint's gets a forged hash (tests/fuzz).

    Time of an attempt: 0.02 s.
    """
    reader = READERS[name]
    attempts = drill.attempts(quick=3, full=100)
    folder = tmp_path / "a" / "b" / "c" / "box"
    folder.mkdir(parents=True)
    make_sandbox(folder)
    real = (folder / reader.file).read_bytes()
    before = content_of(folder)
    for number in attempts:
        with drill.attempt("hostile: files of every kind", f"{name}, {number}"):
            began = time.process_time()
            message = read_forged(reader, folder, mutate(real, reader.form, drill.rng.randrange))
            seconds = time.process_time() - began

            assert message is None or 0 < len(message) < LONGEST_MESSAGE
            assert message is None or "\n" not in message
            assert seconds < 2, f"{seconds:.1f} s"
            found = content_of(folder)
            assert {each: found[each] for each in before} == before
            beside = {path for path in tmp_path.rglob("*") if folder not in (path, *path.parents)}
            assert beside <= set(folder.parents)


@pytest.mark.parametrize("name", VERBS)
def test_no_name_in_a_manifest_leads_out_of_the_checkpoint(drill, sandboxes, tmp_path, name):
    """The manifest names one of the user's files, which must be neither read nor written.

    Time of an attempt: 0.7 s.
    """
    command = COMMANDS[name]
    for entry in drill.some_of(list(LEADS_OUT), quick=1):
        with drill.attempt("hostile: names in manifests", f"{name}, {entry}"):
            box = sandboxes.new(tmp_path)
            (box / "stolen").write_bytes(b"secret")
            (manifest,) = sorted((box / "run").glob("checkpoint/*/manifest.json"))[-1:]
            content = json.loads(manifest.read_text())
            content["files"][entry] = {"bytes": 6, "blake2b": "0" * 32}
            manifest.write_text(json.dumps(content))
            before = content_of(box)

            outcome = run_verb(command.words, tmp_path / "log.txt", cwd=box)

            outcome.require_one_message("manifest.json cannot be read")
            assert content_of(box) == before
            assert {path.name for path in tmp_path.iterdir()} == {"box", "log.txt"}
