"""Every verb is killed at random moments: it leaves nothing half-written, and a second start gives the same result."""

import shutil
import time

import pytest
from contents import content_of, leftovers, losses_of
from verbs import Verb, options, run_verb

LIFECYCLE = {
    "extract": ["extract", "--domains", "zh,en"],
    "extract --export": ["extract", "--domains", "zh", "--export"],
    "experts add": ["experts", "add", "poetry", "--from", "zh"],
    "experts remove": ["experts", "remove", "code"],
    "tiny tokenizer": ["tiny", "tokenizer", "--size", "400"],
}
STAGES = {
    "tokenizer train": "tokenizer",
    "data prepare": "data",
    "routing build": "routing",
    "evaluate": "evaluation.json",
    "generate --every-domain": "samples.json",
}
"""Verb of the main job → what it writes in the run folder."""


def kill_after(words, log, seconds):
    verb = Verb(words, log)
    time.sleep(seconds)
    verb.kill()
    return verb.wait()


@pytest.mark.parametrize("name", LIFECYCLE)
def test_a_killed_lifecycle_verb_leaves_nothing_or_everything(drill, name, copy_of_run, tmp_path):
    _, folder = copy_of_run()
    out = tmp_path / "out"
    words = [*LIFECYCLE[name], "--checkpoint", folder, "--out", out]
    source = content_of(folder)
    done = run_verb(words, tmp_path / "log.txt")
    done.require_success()
    expected = content_of(out)

    for number in drill.attempts(quick=2, full=8):
        shutil.rmtree(out)
        with drill.attempt("kill: lifecycle verbs", f"{name}, {number}"):
            kill_after(words, tmp_path / "log.txt", drill.rng.uniform(0.0, done.seconds))
            left = content_of(out)
            assert left.items() <= expected.items()
            if any("manifest.json" in file or "config.json" in file for file in left):
                assert left == expected
                shutil.rmtree(out)
            run_verb(words, tmp_path / "log.txt").require_success()
            assert content_of(out) == expected
            assert content_of(folder) == source
            assert not leftovers(tmp_path) | leftovers(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_is_run_again(drill, name, copy_of_run, tmp_path):
    overrides, folder = copy_of_run()
    words = [*name.split(), *options(overrides)]
    output = folder / STAGES[name]
    _remove(output)
    done = run_verb(words, tmp_path / "log.txt")
    done.require_success()
    expected = content_of(output)

    for number in drill.attempts(quick=1, full=6):
        _remove(output)
        with drill.attempt("kill: stages", f"{name}, {number}"):
            kill_after(words, tmp_path / "log.txt", drill.rng.uniform(0.0, done.seconds))
            assert not output.exists() or content_of(output) == expected
            run_verb(words, tmp_path / "log.txt").require_success()
            assert content_of(output) == expected
            assert not leftovers(folder)


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_losses(drill, copy_of_run, tmp_path):
    def fresh():
        overrides, folder = copy_of_run()
        shutil.rmtree(folder / "checkpoint")
        (folder / "metrics.jsonl").unlink()
        return folder, ["train", *options(overrides | {"checkpoint.save_steps": "1"})]

    folder, words = fresh()
    done = run_verb(words, tmp_path / "log.txt")
    done.require_success()
    expected = losses_of(folder)

    for number in drill.attempts(quick=2, full=32):
        folder, words = fresh()
        with drill.attempt("kill: training", f"{number}"):
            kill_after(words, tmp_path / "log.txt", drill.rng.uniform(0.3, 1.0) * done.seconds)
            again = run_verb([*words, "--resume"], tmp_path / "log.txt")
            again.require_success()
            assert losses_of(folder) == expected


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
