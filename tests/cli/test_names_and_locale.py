"""Names that are not UTF-8, names with brackets, control characters on terminals, and the locale C."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindpangu import interpreter
from mindpangu.cli import streams
from mindpangu.cli.main import _report_error, main
from mindpangu.config import load_config
from mindpangu.data.corpus import expand_patterns
from mindpangu.data.prepare import BAD_RECORDS, prepare_shards, prepare_tokenizer
from mindpangu.errors import DataError
from mindpangu.files import read_json, write_json, write_text_atomically
from mindpangu.tiny.tokenizer.documents import FileDocuments

GBK = os.fsdecode("测试".encode("gbk"))
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
SMALL = {"domains.names": "[zh, en]", "model.vocab_size": "365", "data.max_bad_records": "9"}


@pytest.fixture
def corpus(tiny_corpus, tmp_path, monkeypatch):
    """corpus(name) writes a corpus of that name, with two bad records, into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(name):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_corpus.read_bytes() + b'{"domain": "xx"}\nno JSON\n')
        return path

    return write


@pytest.mark.parametrize("pattern", ["{name}", "*/*.jsonl"])
@pytest.mark.parametrize("name", [f"{GBK}/{GBK}.jsonl", "x/data[1].jsonl", "x/\x1b[31m\u202e.jsonl", "x/a\nb.jsonl"])
def test_a_corpus_may_have_any_name(corpus, name, pattern):
    corpus(name)
    config = load_config(None, SMALL)
    config.data.corpus[:] = [pattern.format(name=name)]
    messages = []

    prepare_tokenizer(config, messages.append)
    prepare_shards(config, messages.append)

    text = "\n".join(messages)
    assert "2 bad records" in text
    assert "\x1b" not in text
    text.encode("utf-8")
    assert len(Path("output/run/data", BAD_RECORDS).read_text("utf-8").splitlines()) == 2


def test_a_corpus_is_the_same_whatever_its_name(corpus):
    for run, name in (("a", "plain.jsonl"), ("b", f"{GBK}.jsonl"), ("c", "data[1].jsonl")):
        path = corpus(name)
        config = load_config(None, SMALL | {"training.run_name": run})
        config.data.corpus[:] = [str(path)]
        prepare_tokenizer(config, lambda text: None)

    models = {Path("output", run, "tokenizer", "main.model").read_bytes() for run in "abc"}
    stages = {json.dumps(read_json(Path("output", run, "tokenizer", "stage.json"))) for run in "abc"}
    assert len(models) == len(stages) == 1


def test_documents_are_read_from_files_with_any_name(corpus):
    path = corpus(f"{GBK}.txt")

    documents = FileDocuments([str(path)])

    assert [document.source_document[0] for document in documents] == [str(path)]
    assert len(documents.digest) == 32


def test_the_exact_name_of_a_file_takes_precedence_over_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data[1].jsonl", "data1.jsonl", "x[ab].jsonl", "xa.jsonl", "xb.jsonl"):
        Path(name).touch()
    Path("x[ab].jsonl").unlink()

    assert expand_patterns(["data[1].jsonl"]) == [Path("data[1].jsonl")]
    assert expand_patterns(["data[[]1].jsonl"]) == [Path("data[1].jsonl")]
    assert expand_patterns(["x[ab].jsonl"]) == [Path("xa.jsonl"), Path("xb.jsonl")]
    with pytest.raises(DataError, match="matches no file"):
        expand_patterns(["y[1].jsonl"])


def test_text_and_json_files_preserve_any_file_name(tmp_path):
    write_json(tmp_path / "a.json", {"name": GBK, "other": "中文"})
    write_text_atomically(tmp_path / "a.txt", f"{GBK} 中文")

    assert read_json(tmp_path / "a.json") == {"name": GBK, "other": "中文"}
    assert (tmp_path / "a.txt").read_text("utf-8") == r"\udcb2\udce2\udcca\udcd4 中文"


def test_error_messages_escape_control_characters(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert main(["generate", "--checkpoint", f"{GBK}\x1b[2J\u202e", "--domain", "zh", "--prompt", "a"]) == 1

    message = capsys.readouterr().err
    assert r"\xb2\xe2\xca\xd4\x1b[2J\u202e" in message
    assert "\x1b" not in message


def test_usage_errors_escape_control_characters(capsys):
    with pytest.raises(SystemExit):
        main(["config", "\x1b[2J\u202e"])

    assert r"unrecognized arguments: \x1b[2J\u202e" in capsys.readouterr().err


class Screen(io.TextIOWrapper):
    """A stream that is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("kind", "shown"), [(Screen, rb"a\x1b[2J\xb2"), (io.TextIOWrapper, b"a\x1b[2J\xb2")])
def test_only_a_terminal_gets_escapes_on_standard_output(monkeypatch, kind, shown):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", kind(raw, encoding="utf-8", write_through=True))

    with streams.guarded_streams():
        print("a\x1b[2J\udcb2", end="")

    assert raw.getvalue() == shown


def run_in_ascii(*words, cwd):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))} | ASCII
    done = subprocess.run([sys.executable, *words], env=environment, cwd=cwd, capture_output=True, check=False)
    return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


@pytest.mark.parametrize(
    "program", [["-m", "mindpangu"], ["-c", "import sys\nfrom mindpangu.cli.main import main\nsys.exit(main())"]]
)
def test_in_the_locale_c_names_are_utf8(corpus, tmp_path, program):
    corpus("语料/中文.jsonl")
    (tmp_path / "设置.yaml").write_text("domains: {names: [zh, en]}\nmodel: {vocab_size: 365}\n", "utf-8")

    words = [
        "tokenizer",
        "train",
        "--config",
        "设置.yaml",
        "--training.run_name",
        "中文",
        "--data.corpus",
        "[语料/*.jsonl]",
    ]
    code, out, err = run_in_ascii(*program, *words, "--data.max_bad_records", "2", cwd=tmp_path)

    assert (code, err) == (0, "")
    assert "365 pieces → output/中文/tokenizer" in out
    assert (tmp_path / "output" / "中文" / "tokenizer" / "main.model").is_file()


def test_in_the_locale_c_prompts_are_utf8(tmp_path):
    words = ["generate", "--checkpoint", "没有", "--domain", "zh", "--prompt", "打开"]
    code, _, err = run_in_ascii("-m", "mindpangu", *words, cwd=tmp_path)

    assert code == 1
    assert "没有" in err


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "iso8859-1"])
def test_other_locales_stay_as_they_are(monkeypatch, encoding):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    monkeypatch.setattr(os, "execv", lambda *words: pytest.fail("restarted"))

    interpreter.prepare_interpreter()


def test_a_working_directory_that_mindspore_cannot_read_is_not_an_import_path(monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: f"/data/{GBK}")
    monkeypatch.setattr(sys, "path", [f"/data/{GBK}", "/中文", "/usr/lib"])

    interpreter.prepare_interpreter()

    assert sys.path == ["/中文", "/usr/lib"]
    assert interpreter.unreadable_import_path() is None


def test_what_is_imported_stays_an_import_path_and_is_named_where_mindspore_starts(monkeypatch):
    folders = [f"/data/{GBK}", f"/venv/{GBK}"]
    monkeypatch.setattr(interpreter, "__file__", f"/data/{GBK}/mindpangu/interpreter.py")
    monkeypatch.setattr(os, "getcwd", lambda: f"/data/{GBK}")
    monkeypatch.setattr(sys, "path", list(folders))

    interpreter.prepare_interpreter()

    assert sys.path == folders
    assert interpreter.unreadable_import_path() == folders[0]


def test_the_interpreter_accepts_a_working_directory_that_is_gone(monkeypatch):
    def getcwd():
        raise FileNotFoundError

    monkeypatch.setattr(os, "getcwd", getcwd)
    before = list(sys.path)

    interpreter.prepare_interpreter()

    assert sys.path == before


PROGRAM_THAT_COMPILES = """
import mindspore as ms
from mindpangu.interpreter import prepare_interpreter

@ms.jit
def double(x):
    return x + x

if __name__ == "__main__":
    prepare_interpreter()
    print(double(ms.Tensor(1.0)))
"""


@pytest.mark.slow
def test_mindspore_compiles_in_a_folder_of_any_name(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM_THAT_COMPILES, "utf-8")
    folder = tmp_path / GBK
    folder.mkdir()
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])

    done = subprocess.run(
        [sys.executable, "-m", "program"],
        env=os.environ | {"PYTHONPATH": paths},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout.strip()) == (0, "2.0"), done.stderr


@pytest.mark.parametrize(("own", "is_named"), [("gbk", True), ("utf-8", False), ("ascii", False)])
def test_a_name_that_the_locale_cannot_spell_is_named(monkeypatch, capsys, own, is_named):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: own)
    error = UnicodeEncodeError("gbk", "😀.jsonl", 0, 1, "illegal multibyte sequence")

    if not is_named:
        with pytest.raises(UnicodeEncodeError):
            _report_error(error)
        return

    assert _report_error(error) == 1
    assert "the encoding of this locale, gbk, cannot encode '😀.jsonl'; use a locale" in capsys.readouterr().err


def test_a_program_that_reads_the_output_gets_the_bytes_of_a_name(tmp_path):
    words = ["config", "--training.run_name", GBK, "--get", "run_folder"]
    done = subprocess.run(
        [sys.executable, "-m", "mindpangu", *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=True,
    )

    assert done.stdout == b"output/" + os.fsencode(GBK) + b"\n"


def test_other_characters_that_an_encoding_lacks_are_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1", write_through=True))

    with streams.guarded_streams():
        print("é中\ud800\udcb2", end="")

    assert raw.getvalue() == b"\xe9\\u4e2d\\ud800\xb2"
