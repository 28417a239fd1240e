"""Options of the command line: configuration keys among them, numbers, paths, and what --help says about keys."""

import argparse
import itertools
import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.cli.main import _build_parser, main, split_overrides
from mindpangu.config import describe_keys

OLDER = Path(__file__).parents[1] / "fixtures" / "written_by_0_1_0" / "run"
KEYS = [key for key, *_ in describe_keys()]


def parsers(parser=None):
    """Yields the parser of every verb and of every action of a verb."""
    parser = parser or _build_parser()
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


PARSERS = {parser.prog: parser for parser in parsers()}


def options_of_type(parser, kind):
    return [action for action in parser._actions if action.type is kind]


@pytest.mark.parametrize(
    "text", ["--a.b c", "--- a/x.py", "--- a/model.py", "--a.b", "--model.x is good", "--model/x.y=1"]
)
def test_a_text_that_begins_with_dashes_is_not_a_key(text):
    words = ["generate", "--domain", "en", "--prompt", text]

    assert split_overrides(words) == (words, [])
    assert split_overrides(["generate", f"--prompt={text}"]) == (["generate", f"--prompt={text}"], [])


@given(st.text().filter(lambda text: not text.startswith("--")), st.sampled_from(KEYS))
def test_any_value_reaches_its_key(value, key):
    assert split_overrides([f"--{key}", value, "--resume"]) == (["--resume"], [(key, value)])
    assert split_overrides([f"--{key}={value}", "--resume"]) == (["--resume"], [(key, value)])
    assert split_overrides([f"--{key}=--{value}"]) == ([], [(key, f"--{value}")])


def test_a_prompt_that_is_a_diff_reaches_the_verb(capsys):
    assert main(["generate", "--domain", "en", "--checkpoint", "absent", "--prompt", "--- a/x.py\n+++ b/x.py"]) == 1

    assert "there is no complete checkpoint in absent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modle.hidden_size", "3"], "unknown key modle; did you mean model?"),
        (["--model.hiden_size=3"], "unknown key model.hiden_size; did you mean model.hidden_size?"),
        (["--domains.embedding_slots", "[]"], "is now called domains.vocabularies"),
    ],
)
def test_mistaken_keys_are_named(words, message, capsys):
    assert main(["config", *words]) == 1

    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "3"], "unrecognized arguments: --steps 3"),
        (["--training.run_name"], "--training.run_name has no value"),
        (["--training.run_name", "--keys"], "a value that begins with -- is given as --training.run_name=VALUE"),
    ],
)
def test_an_option_that_is_unknown_or_has_no_value_is_a_usage_error(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["config", *words])

    assert message in capsys.readouterr().err


@pytest.mark.parametrize("prog", PARSERS)
@pytest.mark.parametrize(
    ("kind", "text"), [(int, "１"), (int, "1_000"), (float, "1_0.5"), (float, "nan"), (float, "inf")]
)
def test_numbers_of_every_verb_are_plain_decimals(prog, kind, text):
    parser = PARSERS[prog]

    for action in options_of_type(parser, kind):
        with pytest.raises(argparse.ArgumentError, match=r"is not an integer|is not a finite number"):
            parser._get_value(action, text)


@pytest.mark.parametrize("prog", PARSERS)
def test_paths_of_every_verb_may_begin_with_a_tilde(prog, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = PARSERS[prog]

    for action in options_of_type(parser, Path):
        assert parser._get_value(action, "~/x") == Path("/home/me/x")
        assert parser._get_value(action, "./~x") == Path.cwd() / "~x"
        with pytest.raises(argparse.ArgumentError, match="the home folder ~nobody-has-it is unknown"):
            parser._get_value(action, "~nobody-has-it/x")


def test_every_metavar_of_a_path_is_read_as_a_path():
    """An option that takes a file or a folder is of type Path, or is a glob pattern."""
    for prog, parser in PARSERS.items():
        for action in parser._actions:
            if action.metavar in ("FILE", "DIR", "PATH"):
                assert parser._get_value(action, "~/x") in (Path.home() / "x", str(Path.home() / "x")), prog


@pytest.mark.parametrize("prog", [prog for prog in PARSERS if " " in prog])
def test_help_says_whether_keys_are_accepted(prog):
    text = " ".join(PARSERS[prog].format_help().split())

    takes_the_checkpoints = prog.split()[1] in ("experts", "extract")

    assert ("accepted only if they agree with it" in text) == takes_the_checkpoints
    assert ("Any configuration key is an option too" in text) != takes_the_checkpoints


def test_a_configuration_is_searched_where_the_user_stands_and_then_in_the_project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(["config", "--config", "recipes/cpu_smoke.yaml", "--get", "training.run_name"]) == 0
    assert capsys.readouterr().out == "cpu_smoke\n"
    assert main(["config", "--config", "my.yaml"]) == 1
    assert f"my.yaml does not exist; looked in {tmp_path} and in the project folder" in capsys.readouterr().err

    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/cpu_smoke.yaml").write_text("training: {run_name: mine}\n")
    assert main(["config", "--config", "recipes/cpu_smoke.yaml", "--get", "training.run_name"]) == 0
    assert capsys.readouterr().out == "mine\n"


RUN = str(Path(__file__).parents[1] / "fixtures" / "written_by_0_1_0" / "run")
TO = ["convert", "to-pangu-alpha", "--checkpoint", RUN, "--out", "out"]
FROM = [
    "convert",
    "from-pangu-alpha",
    "--source",
    "a",
    "--config",
    f"{RUN}/config.yaml",
    "--tokenizer",
    "b",
    "--out",
    "c",
]
BATCH_SIZE = ["tiny", "batch-size", "--batches", "8,16"]
TINY_TOKENIZER = ["tiny", "tokenizer", "--tokenizer", "a", "--size", "360", "--out", "out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*TO, "--source", "x"], "convert to-pangu-alpha does not use --source; leave it out"),
        ([*TO, "--monitor.log_steps", "7"], "leave out --monitor.log_steps"),
        ([*FROM, "--dtype", "fp32", "--separate-tables"], "does not use --dtype and --separate-tables; leave them out"),
        (["tokenizer", "train", "--model", "x"], "tokenizer train does not use --model"),
        ([*BATCH_SIZE, "--rule", "--rates", "1e-3"], "the rule does not use --rates"),
        ([*BATCH_SIZE, "--exponent", "0"], "a sweep does not use --exponent"),
        ([*TINY_TOKENIZER, "--fields", "x"], "without --corpus, tiny tokenizer does not use --fields"),
        ([*TINY_TOKENIZER, "--verify"], "without --checkpoint, tiny tokenizer does not use --verify"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(words) == 1

    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_may_come_from_a_pipe_but_only_once(capsys):
    reading, writing = os.pipe()
    os.write(writing, b"training: {run_name: piped}\n")
    os.close(writing)
    words = ["config", "--config", f"/dev/fd/{reading}", "--get", "training.run_name"]

    assert main(words) == 0
    assert capsys.readouterr().out == "piped\n"
    assert main(words) == 1
    assert "is an empty pipe" in capsys.readouterr().err
    os.close(reading)


def test_a_saved_configuration_is_no_pipe(tmp_path, capsys):
    """It lies in a run folder, which may come from elsewhere."""
    (tmp_path / "metrics.jsonl").touch()
    os.mkfifo(tmp_path / "config.yaml")

    assert main(["config", "--config", str(tmp_path / "config.yaml")]) == 1

    assert "it is a FIFO; only regular files are read here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key", ["model.__class__", "data.corpus.append", "training.steps.real", "model..x", "x", "run_folder.x", ""]
)
def test_only_keys_have_values(capsys, key):
    assert main(["config", f"--get={key}"]) == (1 if key else 0)

    assert key == "" or f"unknown key {key}; `mindpangu config --keys` lists them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "ignored"),
    [
        (
            "extract --domains zh --checkpoint run --out out --export --weights-only",
            "an export does not use --weights-only",
        ),
        ("extract --domains zh --checkpoint run --out out --export --verify", "an export does not use --verify"),
        ("tiny batch-size --rule --batches 1 --processes 2", "the rule does not use --processes"),
    ],
)
def test_an_option_that_the_chosen_form_of_a_verb_ignores_is_refused(tmp_path, monkeypatch, capsys, words, ignored):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLDER, tmp_path / "run")

    assert main(words.split()) == 1

    assert ignored in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "tiny tokenizer --tokenizer nowhere --size 400 --out out",
        "experts add p --fresh --tokenizer nowhere --checkpoint run --out out",
        "convert from-pangu-alpha --source a --tokenizer nowhere --config run/config.yaml --out out",
        "tokenizer extend --model nowhere --out out",
        "tokenizer train --data.corpus [] --data.tokenizer nowhere",
    ],
)
def test_a_missing_tokenizer_is_blamed_on_the_option_that_names_it(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLDER, tmp_path / "run")
    named = next(word.lstrip("-") for word, value in itertools.pairwise(words.split()) if value == "nowhere")

    assert main(words.split()) == 1

    message = capsys.readouterr().err
    assert re.search(rf"tokenizer nowhere cannot be read: No such file or directory; check (--)?{named}\n", message)
