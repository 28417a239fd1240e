"""Two processes write the same thing: exactly one wins, the other says why in one message, no source changes."""

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
}
STAGES = {"tokenizer train": "tokenizer", "data prepare": "data", "routing build": "routing"}


def race(words, tmp_path, seconds):
    """Starts a verb twice, the second `seconds` later; returns both outcomes."""
    first = Verb(words, tmp_path / "first.txt")
    time.sleep(seconds)
    second = Verb(words, tmp_path / "second.txt")
    return first.wait(), second.wait()


@pytest.mark.parametrize("name", LIFECYCLE)
def test_two_lifecycle_verbs_with_one_output_folder(drill, name, copy_of_run, tmp_path):
    _, folder = copy_of_run()
    out = tmp_path / "out"
    words = [*LIFECYCLE[name], "--checkpoint", folder, "--out", out]
    source = content_of(folder)
    done = run_verb(words, tmp_path / "log.txt")
    done.require_success()
    expected = content_of(out)

    for number in drill.attempts(quick=3, full=50):
        shutil.rmtree(out)
        with drill.attempt("two writers: lifecycle verbs", f"{name}, {number}"):
            outcomes = race(words, tmp_path, drill.rng.uniform(0.0, 0.5) * done.seconds)
            assert content_of(folder) == source
            assert sorted(outcome.code for outcome in outcomes) == [0, 1], [outcome.output for outcome in outcomes]
            max(outcomes, key=lambda outcome: outcome.code).require_one_message(str(out), out.name)
            assert content_of(out) == expected
            assert not leftovers(tmp_path)


@pytest.mark.parametrize("name", STAGES)
def test_two_equal_stages_share_one_result(drill, name, copy_of_run, tmp_path):
    overrides, folder = copy_of_run()
    words = [*name.split(), *options(overrides)]
    output = folder / STAGES[name]
    expected = content_of(output)

    for number in drill.attempts(quick=1, full=10):
        shutil.rmtree(output)
        with drill.attempt("two writers: stages", f"{name}, {number}"):
            for outcome in race(words, tmp_path, drill.rng.uniform(0.0, 0.3)):
                outcome.require_success()
            assert content_of(output) == expected
            assert not leftovers(folder)


def test_a_second_training_in_the_same_run_folder_is_refused(drill, copy_of_run, tmp_path):
    for number in drill.attempts(quick=1, full=10):
        overrides, folder = copy_of_run()
        expected = losses_of(folder)
        shutil.rmtree(folder / "checkpoint")
        (folder / "metrics.jsonl").unlink()
        with drill.attempt("two writers: training", f"{number}"):
            outcomes = race(["train", *options(overrides)], tmp_path, drill.rng.uniform(0.0, 1.0))
            assert sorted(outcome.code for outcome in outcomes) == [0, 1], [outcome.output for outcome in outcomes]
            max(outcomes, key=lambda outcome: outcome.code).require_one_message(str(folder))
            assert losses_of(folder) == expected
