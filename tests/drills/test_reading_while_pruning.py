"""Verbs that read while another process saves and prunes: they take the newest checkpoint, or say what was removed.

tests/cli/test_reading_while_pruning.py prunes at each moment of a verb; here the moments are left to chance.
"""

import time

import pytest
from commands import COMMANDS, READERS
from contents import leftovers
from verbs import Verb, run_verb
from writers import save_and_prune

AGAIN = "reading the newest checkpoint instead"
VERBS = {
    "experts list": READERS["experts list"],
    "extract --verify": COMMANDS["extract --verify"].words,
    "experts resize": COMMANDS["experts resize"].words,
}


@pytest.fixture
def live(drill, sandboxes, tmp_path):
    """A sandbox in which live/ is saved and pruned twice a second."""
    drill.attempts(quick=0, full=1)
    box = sandboxes.new(tmp_path)
    training = Verb(save_and_prune, tmp_path / "training.txt", cwd=box)
    while not any(box.glob("live/checkpoint/iteration_*")):
        time.sleep(0.1)
    yield box
    assert training.is_running(), (tmp_path / "training.txt").read_text()
    training.kill()
    training.wait()


def test_verbs_read_while_another_process_saves_and_prunes(drill, live, tmp_path):
    """Time of an attempt: 0.5 s."""
    outcomes = []
    for number in drill.attempts(quick=0, full=60):
        name = list(VERBS)[number % len(VERBS)]
        words = ["live" if word == "run" else word for word in VERBS[name]]
        with drill.attempt("reading while a training prunes", f"{name}, {number}"):
            if "out" in words:
                words[words.index("out")] = f"out_{number}"

            outcome = run_verb(words, tmp_path / "log.txt", cwd=live)

            outcomes.append(outcome)
            if outcome.code != 0:
                outcome.require_one_message("faster than they can be")
            assert not leftovers(live / f"out_{number}", locks=True)
    assert sum(outcome.code == 0 for outcome in outcomes) >= 0.75 * len(outcomes)
    assert any(AGAIN in outcome.output for outcome in outcomes)  # otherwise this tests nothing
