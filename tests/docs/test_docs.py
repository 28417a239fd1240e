"""The documentation is true: its commands run, its links have targets, and the configuration keys it names exist.

The `bash` and `python` blocks of a page run in order, unchanged, in a copy of the project's recipes and tools. In this
copy `recipes/cpu_smoke.yaml` is tiny and already trained into `output/cpu_smoke`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
PAGES = sorted((PROJECT / "docs").glob("*.md"))
PAGES_AND_READMES = [*(PROJECT / name for name in ("README.md", "README_CN.md", "CONTRIBUTING.md")), *PAGES]
RECIPE = "recipes/cpu_smoke.yaml"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:mindpangu|ascend_ops|tools|tests|recipes)/[\w./-]+)`")
_BUILT = "ascend_ops/_build"
_FILE_ENDINGS = ("md", "py", "yaml", "png", "json", "safetensors", "jsonl", "cc")


def blocks_of(path):
    """Returns (language, text) of every fenced block."""
    return _FENCE.findall(path.read_text(encoding="utf-8"))


def without_blocks(path):
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


# ---- Commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tiny_corpus, tiny_overrides, tmp_path_factory):
    """A copy of the project in which the recipe of the main job is tiny and has been trained."""
    from mindpangu.cli.main import main

    folder = tmp_path_factory.mktemp("project")
    corpus = folder / "recipes" / "corpus"
    shutil.copytree(PROJECT / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("corpus"))
    corpus.mkdir()
    shutil.copy(tiny_corpus, corpus / "tiny.jsonl")
    (folder / "tools").symlink_to(PROJECT / "tools")

    recipe = {}
    for key, text in tiny_overrides.items():
        section, name = key.split(".")
        recipe.setdefault(section, {})[name] = yaml.safe_load(text)
    recipe["data"]["corpus"] = ["recipes/corpus/*.jsonl"]
    recipe["training"] |= {"output_dir": "output", "run_name": "cpu_smoke"}
    (folder / RECIPE).write_text(yaml.safe_dump(recipe))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in (["tokenizer", "train"], ["data", "prepare"], ["routing", "build"], ["train"]):
            assert main([*stage, "--config", RECIPE]) == 0
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environment variables with which `python` and `mindpangu` are those that run this test."""
    programs = tmp_path_factory.mktemp("bin")
    interpreter_folder = Path(sys.executable).parent
    for name, arguments in (("python", ""), ("mindpangu", " -m mindpangu")):
        if not (interpreter_folder / name).exists():
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
            (programs / name).chmod(0o755)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MINDPANGU_")}
    path = os.pathsep.join((str(interpreter_folder), str(programs), os.environ["PATH"]))
    return variables | {"PATH": path, "PYTHONPATH": str(PROJECT)}


def run_block(language, text, folder, environment):
    command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else ["python", "-c", text]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


SLOW_PAGES = "checkpoints convert ecss evaluation finetune generation lifecycle main_job operators tiny".split()
"""Pages whose commands take ten seconds or more."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in SLOW_PAGES else (), id=page.stem) for page in PAGES],
)
def test_the_commands_of_a_page_run(page, project, environment):
    for language, text in blocks_of(page):
        if language in ("bash", "python"):
            done = run_block(language, text, project, environment)
            assert done.returncode == 0, f"{page.name}:\n{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_names_its_language_and_bash_blocks_have_only_our_commands(page):
    for language, text in blocks_of(page):
        assert language in ("bash", "python", "console", "text"), f"{page.name}: {language or 'none'}\n{text}"
        if language == "bash":
            assert all(line.startswith(("mindpangu ", "python ")) for line in text.splitlines()), text


def test_the_page_of_the_main_job_has_the_stages_of_its_script():
    script = (PROJECT / "recipes" / "run_910.sh").read_text(encoding="utf-8")
    stages = re.findall(r'^ *(mindpangu .*?) "\$\{(?:train_)?options\[@\]\}"(?: .*)?$', script, re.MULTILINE)

    documented = blocks_of(PROJECT / "docs" / "main_job.md")[1]

    assert documented == ("bash", "".join(f"{stage} --config {RECIPE}\n" for stage in stages))


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "mindpangu config --get training.step"),
        ("bash", "mindpangu config --training.step 3\nmindpangu config --keys"),
        ("bash", "python tools/no_such_tool.py"),
        ("python", "from mindpangu.config import no_such_name"),
    ],
)
def test_a_wrong_command_fails(language, text, project, environment):
    assert run_block(language, text, project, environment).returncode != 0


# ---- Links and keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES_AND_READMES, ids=lambda page: page.name)
def test_every_relative_link_has_a_target(page):
    for link in _LINK.findall(without_blocks(page)):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), f"{page.name}: {link}"

        if anchor:
            anchors = anchors_of(target)
            assert anchor in anchors, f"{page.name}: {link}; {target.name} has {sorted(anchors)}"


@pytest.mark.parametrize("page", PAGES_AND_READMES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page):
    named = _PATH.findall(without_blocks(page))

    missing = [name for name in named if not name.startswith(_BUILT) and not (PROJECT / name).exists()]

    assert missing == []


def anchors_of(page):
    """Returns the anchors that a renderer gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def unknown_keys(text):
    """Returns the dotted keys in a text whose section exists in the configuration, but not the key."""
    from mindpangu.config import describe_keys

    known = {key for key, *_ in describe_keys()}
    sections = "|".join(sorted({key.split(".")[0] for key in known}))
    # skips files (data.md), paths (model/…), and modules (mindpangu.model…)
    pattern = rf"(?<![\w./])({sections})\.([a-z_]\w*)"
    keys = {f"{section}.{name}" for section, name in re.findall(pattern, text) if name not in _FILE_ENDINGS}
    return sorted(keys - known)


@pytest.mark.parametrize("page", PAGES_AND_READMES, ids=lambda page: page.name)
def test_every_configuration_key_on_a_page_exists(page):
    commands = [text for language, text in blocks_of(page) if language in ("bash", "console")]

    assert unknown_keys("\n".join([without_blocks(page), *commands])) == []


def test_unknown_keys_are_found_and_files_and_modules_are_ignored():
    text = "`training.stepz`, --model.depth 3, data.md, `data.seed`, mindpangu.data.loader"

    assert unknown_keys(text) == ["model.depth", "training.stepz"]


# ---- Examples of the code --------------------------------------------------------------------------------------------


def test_the_examples_in_contributing_are_the_code_itself():
    text = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")

    examples = re.findall(r"From\s+`([^`]+)`:\n\n```python\n(.*?)```", text, re.DOTALL)

    assert len(examples) == len(re.findall("^```python", text, re.MULTILINE)) == 5
    for name, example in examples:
        assert example in (PROJECT / name).read_text(encoding="utf-8"), name
