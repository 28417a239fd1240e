"""The pool of trials: finished trials are skipped, workers share the rest, and trials end with the pool."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from mindpangu.config import load_config
from mindpangu.errors import ConfigError
from mindpangu.tiny.trials import pool
from mindpangu.tiny.trials.pool import run_trials
from mindpangu.tiny.trials.trial import PREPARED, Trial, Trials, require_same_search, result_settings

PROJECT = Path(__file__).resolve().parents[3]


def trials_in(folder, names):
    for name in ("tokenizer", "data"):
        (folder / PREPARED / name).mkdir(parents=True, exist_ok=True)
        (folder / PREPARED / name / "file").write_text("once")
    keys = {"training.output_dir": str(folder)}
    configs = [load_config(None, keys | {"training.run_name": name}) for name in names]
    return [Trial(config, {"of": config.training.run_name}, False, False) for config in configs]


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_finished_trials_are_skipped_and_failed_ones_retried(tmp_path, fake_trials):
    trials = trials_in(tmp_path / "out", "abcd")
    (tmp_path / "out" / "fail_b").touch()

    failed = run_trials(trials, processes=2)

    assert list(failed) == ["b"]
    assert failed["b"].startswith("no luck (full log: ")
    assert [trial.is_done() for trial in trials] == [True, False, True, True]
    assert (tmp_path / "out" / "a" / "data" / "file").read_text() == "once"

    (tmp_path / "out" / "fail_b").unlink()
    assert run_trials(trials) == {}
    assert fake_trials(tmp_path / "out") == {"a": 1, "b": 2, "c": 1, "d": 1}


def test_a_trial_with_other_inputs_is_not_done(tmp_path, fake_trials):
    (trial,) = trials_in(tmp_path / "out", "a")
    run_trials([trial])

    other = Trial(trial.config, {"of": "something else"}, False, False)

    assert trial.is_done()
    assert not other.is_done()


def test_no_processes_and_parallel_trials_are_refused(tmp_path, tiny_overrides):
    with pytest.raises(ConfigError, match="--processes is 0; allowed: >= 1"):
        run_trials([], processes=0)
    parallel = load_config(None, tiny_overrides | {"parallelism.data_parallel": "2"})
    with pytest.raises(ConfigError, match="asks for 2 processes, but each of these trainings runs in one"):
        Trials(tmp_path, parallel)


def test_another_search_in_the_same_folder_is_refused(tmp_path):
    require_same_search(tmp_path, "search.json", {"a": {"b": 1}}).write({})
    assert require_same_search(tmp_path, "search.json", {"a": {"b": 1}}).is_current()
    with pytest.raises(ConfigError, match=r"holds another search \(a\.b is 1, now 2\); give the same options"):
        require_same_search(tmp_path, "search.json", {"a": {"b": 2}})


def test_a_search_that_was_saved_before_a_key_was_renamed_can_be_resumed(tmp_path):
    config = load_config(None)
    saved = result_settings(config)
    saved["domains"] = {"embedding_slots": [], **asdict(config.domains)}  # now domains.vocabularies
    del saved["domains"]["vocabularies"]
    (tmp_path / "search.json").write_text(json.dumps({"inputs": {"config": saved}}))

    search_file = require_same_search(tmp_path, "search.json", {"config": result_settings(config)})

    assert search_file.is_current()


def test_an_interrupted_pool_ends_its_trials_and_can_be_resumed(tmp_path, fake_trials, monkeypatch):
    trials = trials_in(tmp_path / "out", "abc")
    (tmp_path / "out" / "wait_b").touch()

    def interrupt(futures):
        wait_for((tmp_path / "out" / "b" / "waiting").exists)
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "as_completed", interrupt)

    with pytest.raises(KeyboardInterrupt):
        run_trials(trials, processes=1)
    assert (tmp_path / "out" / "b" / "ended").exists()
    assert fake_trials(tmp_path / "out") == {"a": 1, "b": 1}

    monkeypatch.undo()
    (tmp_path / "out" / "wait_b").unlink()
    monkeypatch.setattr(pool, "PROGRAM", (str(tmp_path / "fake_trial.py"),))
    assert run_trials(trials) == {}
    assert fake_trials(tmp_path / "out") == {"a": 1, "b": 2, "c": 1}


def test_trials_end_with_a_pool_that_is_killed(tmp_path, fake_trials):
    trials_in(tmp_path / "out", "ab")
    (tmp_path / "out" / "wait_b").touch()
    script = textwrap.dedent(f"""
        from mindpangu.config import load_config
        from mindpangu.tiny.trials import pool
        from mindpangu.tiny.trials.trial import Trial
        pool.PROGRAM = ({str(tmp_path / "fake_trial.py")!r},)
        keys = {{"training.output_dir": {str(tmp_path / "out")!r}}}
        configs = {{name: load_config(None, keys | {{"training.run_name": name}}) for name in "ab"}}
        pool.run_trials([Trial(config, {{"of": name}}, False, False) for name, config in configs.items()])
    """)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}

    parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "out" / "b" / "waiting").exists)
    parent.kill()
    parent.wait()

    wait_for((tmp_path / "out" / "b" / "ended").exists)
    assert fake_trials(tmp_path / "out") == {"a": 1, "b": 1}


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_measures(tmp_path, tiny_overrides):
    base = load_config(None, tiny_overrides | {"model.rre_layers": "1", "training.steps": "40"})
    results = []
    for name, kill in (("whole", False), ("killed", True)):
        trial = Trials(tmp_path / name, base, log=lambda text: None).add("trial", base)
        if kill:
            trial.prepare_folder()
            command = [sys.executable, *pool.PROGRAM, str(trial.folder.root), "--inputs", json.dumps(trial.inputs)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            wait_for(lambda root=trial.folder: root.latest.exists(), 120)  # the checkpoint of step 2
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not trial.is_done()
        assert run_trials([trial]) == {}
        results.append(trial.result())
        assert ("resumed from" in trial.log_file.read_text()) == kill

    assert results[0]["heldout"] == results[1]["heldout"]
    assert results[0]["final_loss"] == results[1]["final_loss"]
    assert results[0]["decode_tokens_per_s"] is None
