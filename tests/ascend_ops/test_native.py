"""Compiling kernels: once per content, by one process at a time, and with a clear message on failure."""

import ctypes
import shutil
import subprocess
import sys
import textwrap

import pytest

from ascend_ops import native

SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Returns a package with one operator, "tiny", and a compiler that records every call in calls.txt."""
    folder = tmp_path / "package"
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "cpu.cc").write_text(SOURCE)
    compiler = tmp_path / "compiler"
    compiler.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        case "$*" in *--version*) ;; *) echo "$@" >> {tmp_path}/calls.txt; sleep 0.2 ;; esac
        exec g++ "$@"
        """)
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(native, "PACKAGE", folder)
    for cached in (native.compiler, native._compiler_version, native.build_folder):
        cached.cache_clear()
    yield folder
    for cached in (native.compiler, native._compiler_version, native.build_folder):
        cached.cache_clear()


def calls(package):
    path = package.parent / "calls.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_kernel_is_compiled_once_and_again_when_a_source_changes(package):
    first = native.library("tiny")

    assert ctypes.CDLL(str(first)).answer() == 42
    assert native.library("tiny") == first
    assert calls(package) == 1
    (package / "tiny" / "cpu.cc").write_text(SOURCE.replace("42", "43"))
    second = native.library("tiny")
    assert ctypes.CDLL(str(second)).answer() == 43
    (package / "shared.h").write_text("// a header that every kernel includes\n")
    assert native.library("tiny") not in (first, second)
    assert calls(package) == 3


def test_only_one_of_several_processes_compiles(package):
    program = (
        "import sys, pathlib; from ascend_ops import native; native.PACKAGE = pathlib.Path(sys.argv[1]); "
        "print(native.library('tiny'))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(package)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]

    printed = {process.communicate(timeout=60)[0] for process in processes}

    assert len(printed) == 1
    assert calls(package) == 1
    assert sorted(path.suffix for path in (package / "_build").glob("tiny*")) == [".sha256", ".so"]


def test_a_truncated_library_is_compiled_again(package):
    path = native.library("tiny")

    path.write_bytes(path.read_bytes()[:5000])

    assert native.library("tiny") == path
    assert ctypes.CDLL(str(path)).answer() == 42
    assert calls(package) == 2


def test_a_compiler_that_is_no_program_is_named(package, monkeypatch, tmp_path):
    (tmp_path / "no-program").write_text("?")
    (tmp_path / "no-program").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "no-program"))
    native.compiler.cache_clear()
    native._compiler_version.cache_clear()

    with pytest.raises(native.CompileError, match="no-program does not run"):
        native.library("tiny")


def test_a_source_that_does_not_compile_is_quoted_and_leaves_nothing(package):
    (package / "tiny" / "cpu.cc").write_text("int answer() { return forty_two; }\n")

    with pytest.raises(native.CompileError, match=r"tiny/cpu\.cc does not compile(.|\n)*forty_two"):
        native.library("tiny")
    assert list((package / "_build").glob("tiny*")) == []


def test_no_compiler_is_named_with_the_remedy(package, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.compiler.cache_clear()

    with pytest.raises(native.CompileError, match=r"no-such-compiler is not on PATH .*install g\+\+"):
        native.library("tiny")


def test_a_package_that_cannot_be_written_uses_the_cache_of_the_user(package, monkeypatch, tmp_path):
    (package / "_build").write_text("in the way\n")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    assert native.library("tiny").parent == tmp_path / "cache" / "ascend_ops"


def test_compiled_kernels_are_used_where_nothing_can_be_written(package, monkeypatch):
    compiled = native.library("tiny")
    forget_the_folder(monkeypatch)

    assert native.library("tiny") == compiled


def test_without_a_home_the_error_says_what_to_set(package, monkeypatch):
    (package / "_build").write_text("in the way\n")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")

    def no_such_user(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", no_such_user)

    with pytest.raises(native.CompileError, match=r"no folder for .*; set XDG_CACHE_HOME to one"):
        native.library("tiny")


def forget_the_folder(monkeypatch):
    """Makes every folder appear read-only, as for another user."""

    def refuse(**_):
        raise PermissionError("read-only")

    native.build_folder.cache_clear()
    monkeypatch.setattr(native.tempfile, "TemporaryFile", refuse)
