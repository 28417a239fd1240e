"""Compiles an operator's cpu.cc into a library at installation, and again if a source, flag or compiler changes.

The name of a library contains a hash of its sources, the compiler, the flags and the kind of processor, so that nodes
that share the project folder never load each other's code, and an unchanged source is never compiled twice.

    python -m ascend_ops.native        compiles all of them and prints their paths
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from ascend_ops.files import remove_leftovers, scratch_file, write_text

PACKAGE = Path(__file__).parent
OPERATORS = tuple(sorted(source.parent.name for source in PACKAGE.glob("*/cpu.cc")))

# Without fused multiply-adds, Adam on the host gives NumPy's bits. oneDNN's matmuls do fuse. A square root that may set
# errno is not vectorized.
ARITHMETIC = ("-ffp-contract=off", "-fno-math-errno")
FLAGS = ("-std=c++17", "-O3", *ARITHMETIC, "-fopenmp", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall")
TUNING = {"x86_64": "-march=native", "aarch64": "-mcpu=native"}


class OperatorError(RuntimeError):
    """An operator is unavailable; the message gives the reason and the remedy."""


class CompileError(OperatorError):
    """A kernel cannot be compiled."""


def library(operator: str) -> Path:
    """Returns the path of an operator's compiled kernels; compiles them first if necessary.

    If several processes ask at once, one compiles and the others wait. A library appears complete or not at all.

    Raises:
        CompileError: there is no compiler, the source does not compile, or the folder cannot be written.
    """
    command = [compiler(), *FLAGS, *TUNING.get(platform.machine(), "").split(), "cpu.cc", *_link_flags(operator)]
    name = f"{operator}-{_content_hash(operator, command)}.so"
    for folder in _folders():
        if _is_complete(folder / name):  # even if the folder is not writable
            return folder / name
    folder = build_folder()
    path = folder / name
    try:
        with (folder / ".lock").open("ab") as lock:
            if _acquire(lock):
                remove_leftovers(path)
            if not _is_complete(path):
                _compile(operator, command, path)
    except OSError as error:
        raise CompileError(f"{operator}/cpu.cc could not be compiled into {folder}: {error}") from None
    return path


def _acquire(lock: BinaryIO) -> bool:
    """Waits for the lock. Returns False if the file system has no locks; several processes may then compile at once."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return False
    return True


def _is_complete(path: Path) -> bool:
    """True if a library is exactly as it was compiled.

    A power cut or a full disk may have truncated it, and a process that loads such a file dies without a message.
    """
    try:
        return path.with_suffix(".sha256").read_bytes() == hashlib.sha256(path.read_bytes()).hexdigest().encode()
    except OSError:
        return False


def _compile(operator: str, command: list[str], path: Path) -> None:
    with scratch_file(path) as unfinished:
        done = subprocess.run(
            [*command, "-o", str(unfinished)],
            cwd=PACKAGE / operator,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode != 0:
            complaint = "\n".join(done.stderr.strip().splitlines()[-8:])
            raise CompileError(f"{operator}/cpu.cc does not compile with {command[0]}:\n{complaint}")
        digest = hashlib.sha256(unfinished.read_bytes()).hexdigest()
    write_text(path.with_suffix(".sha256"), digest)


@functools.cache
def compiler() -> str:
    """Returns the path of the C++ compiler: CXX, or g++.

    Raises:
        CompileError: the compiler is not installed.
    """
    name = os.environ.get("CXX") or "g++"
    path = shutil.which(name)
    if path is None:
        raise CompileError(f"no C++ compiler: {name} is not on PATH (on Debian: apt install g++; or set CXX)")
    return path


@functools.cache
def _compiler_version() -> str:
    try:
        return subprocess.run([compiler(), "--version"], capture_output=True, encoding="utf-8", errors="replace").stdout
    except OSError as error:
        raise CompileError(f"the C++ compiler {compiler()} does not run: {error}") from None


@functools.cache
def _processor() -> str:
    """Returns a description of the machine and its instruction sets, which decide what -march=native means."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    wanted = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU implementer", "CPU part")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(wanted)}))


def _link_flags(operator: str) -> list[str]:
    """Returns the flags that link the oneDNN of the MindSpore wheel, if cpu.cc calls it."""
    source = (PACKAGE / operator / "cpu.cc").read_text("utf-8")
    if "dnnl_" not in source and "gemm.h" not in source:
        return []
    # located without importing MindSpore, which takes seconds
    spec = importlib.util.find_spec("mindspore")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else None
    if folder is None or not list(folder.glob("libdnnl.so.*")):
        raise CompileError(f"{operator} needs the oneDNN of the MindSpore wheel (lib/libdnnl.so), which is not there")
    dnnl = min(folder.glob("libdnnl.so.*"), key=lambda file: len(file.name))
    return [str(dnnl), f"-Wl,-rpath,{folder}"]


def _content_hash(operator: str, command: list[str]) -> str:
    digest = hashlib.sha256()
    for source in sorted([*PACKAGE.glob("*.h"), *(PACKAGE / operator).glob("*.h"), PACKAGE / operator / "cpu.cc"]):
        digest.update(source.read_bytes())
    digest.update("\0".join([*command, _compiler_version(), _processor()]).encode())
    return digest.hexdigest()[:16]


@functools.cache
def build_folder() -> Path:
    """Returns ascend_ops/_build, or a folder in the user's cache if the package is not writable."""
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            problem = error
    raise CompileError(f"no folder for compiled kernels can be written: {problem}; set XDG_CACHE_HOME to one")


def _folders() -> list[Path]:
    """Returns the folders that may hold compiled kernels, in order of preference."""
    folders = [PACKAGE / "_build"]
    with contextlib.suppress(RuntimeError):  # no HOME, and a user without an entry in the password database
        folders.append(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ascend_ops")
    return folders


def main() -> int:
    """Compiles every operator. Returns 0 even without a compiler, because the composed operators run instead."""
    for operator in OPERATORS:
        try:
            print(f"{operator}: {library(operator)}")
        except CompileError as error:
            print(f"{operator}: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
