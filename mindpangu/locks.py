"""Advisory locks on files and folders, so that two processes never write the same one.

The lock of `folder/name` is the file `folder/.name.lock`, held with flock. The kernel releases it when the holder ends,
however it ends. Where the file system has no flock that all hosts see, the lock is the folder `folder/.name.locked`,
whose only entry describes the holder.

Unfinished output lies next to its destination, as `.name.<unique name>.writing`, and exists only while its writer holds
the lock. So whoever gets the lock may remove the unfinished output that it finds: its writer is dead. A folder that is
being replaced is called `.name.<unique name>.former` for a moment; it is restored if the writer dies at that moment.

Nothing inside a complete checkpoint can be locked, so nothing is written there: it would change the checkpoint, and be
removed with it.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mindpangu.display import short_text
from mindpangu.errors import CheckpointError, InUseError
from mindpangu.untrusted import open_file, parse_json, read_bytes, read_record

SHORT_WAIT_S = 1.0
"""Default number of seconds to wait for a lock. A writer may hold it for hours, and is not waited for; a process that
only looks for leftovers holds it for milliseconds."""

_NO_FLOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
_LOCAL_FLOCK = {"localflock", "nolock", "local_lock=flock", "local_lock=all"}  # mount options of Lustre and NFS
_MOUNTS = "/proc/self/mountinfo"
_MAX_OWNER_BYTES = 4096
_MAX_STEM_BYTES = 150  # of the 255 in a file name; `unique_name` and the suffixes add up to 80
_RECORD_BEGINNING = b'{"host": '  # of the owner recorded in a lock, see `Owner.encode`
_POLL_S = (0.01, 0.2)  # first and longest pause between two attempts

_UNIQUE = r"[\w-]+-[0-9a-f]{8,}"
_SCRATCH = re.compile(rf"\.(?P<name>.+)\.{_UNIQUE}\.(?:writing|former|deleting|locking)")
_LOCK = re.compile(r"\.(?P<name>.+)\.lock(?:ed)?")
_SHORTENED = re.compile(r"~[0-9a-f]{16}$")  # see `_stem`

_MANIFEST = "manifest.json"  # in each complete checkpoint, see `mindpangu/checkpoint/manifest.py`
_MANIFEST_BEGINS = re.compile(rb'\s*\{\s*"format_version"\s*:\s*\d+\s*,\s*"step"\s*:')
_ITERATION = re.compile(r"iteration_\d{8,}")

_Release = Callable[[], None]


class _Held(threading.local):
    """The destinations that this thread has locked. It may lock them again."""

    def __init__(self) -> None:
        self.destinations: set[Path] = set()


_held = _Held()


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        host: the host's name, for people.
        machine: the boot and the PID namespace in which `pid` is valid, "" if unknown. The host's name does not tell
            containers apart.
        pid: process id.
        started: when the process started, in clock ticks since the boot, because the kernel reuses process ids.
    """

    host: str
    machine: str
    pid: int
    started: int

    @staticmethod
    def this_process() -> "Owner":
        """Returns this process as an owner."""
        machine = ""
        with contextlib.suppress(OSError):  # some sandboxes hide them
            boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
            machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
        pid = os.getpid()
        return Owner(socket.gethostname(), machine, pid, _start_time(pid) or 0)

    @staticmethod
    def read(path: Path) -> "Owner | None":
        """Reads the owner recorded in a lock. Returns None if there is none, e.g. because it is just being acquired."""
        try:
            return read_record(Owner, parse_json(read_bytes(path, _MAX_OWNER_BYTES)))
        except (OSError, ValueError):
            return None

    def encode(self) -> bytes:
        """Returns the owner as it is recorded in a lock."""
        return json.dumps(asdict(self)).encode()

    @property
    def is_dead(self) -> bool:
        """True if the process has certainly ended. Processes of other machines count as alive."""
        here = self.machine != "" and self.machine == Owner.this_process().machine
        return here and _start_time(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {short_text(self.host)}"


def unique_name() -> str:
    """Returns a name that no other call in any process returns: host, process id, start time, and random digits."""
    owner = Owner.this_process()
    host = re.sub(r"\W+", "_", owner.host, flags=re.ASCII)[:32]
    return f"{host}-{owner.pid}-{owner.started}-{os.urandom(4).hex()}"


def scratch_path(destination: Path, unique: str, kind: str = "writing") -> Path:
    """Returns the path of unfinished output next to `destination`.

    Args:
        unique: the result of `unique_name`, or a name that only the ranks of a job share.
        kind: "writing"; "former" for a folder that is being replaced; "deleting" for a folder that is about to be
            removed; or "locking" for the lock itself.
    """
    return destination.with_name(f".{_stem(destination)}.{unique}.{kind}")


@contextlib.contextmanager
def locked(
    destination: Path, wait: float = SHORT_WAIT_S, keep: str | None = None, in_use: str | None = None
) -> Iterator[Path]:
    """Locks a file or folder inside the block, and removes the unfinished output of dead processes next to it.

    A folder that one of them was replacing is restored. Creates the parent folder, and removes it at the end if it is
    still empty. A thread may lock a destination that it has already locked.

    Args:
        destination: the path to lock; if it is a link, the path it leads to.
        wait: seconds to wait while another process holds the lock; may be infinite.
        keep: unique name whose unfinished output stays, because other ranks of the job may have begun to write it.
        in_use: beginning of the error message, which goes on with "by process …".

    Yields:
        The destination without links.

    Raises:
        CheckpointError: the destination is inside a checkpoint.
        InUseError: another process holds the lock.
        OSError: the lock cannot be created.
    """
    refuse_checkpoint(destination)
    destination = Path(os.path.realpath(destination))
    if destination in _held.destinations:
        yield destination
        return
    with contextlib.ExitStack() as stack:
        stack.callback(_acquire(destination, wait, in_use or f"{destination} is being written", stack))
        _held.destinations.add(destination)
        stack.callback(_held.destinations.discard, destination)
        _remove_leftovers(destination, keep)
        yield destination


def clear_leftovers(folder: Path) -> None:
    """Removes the locks and the unfinished output of dead processes in a folder; those of live processes stay."""
    names = set()
    for path in _entries(folder):
        match = _SCRATCH.fullmatch(path.name)
        if match is None and path.name.endswith((".lock", ".locked")) and any(_owners(path).values()):
            match = _LOCK.fullmatch(path.name)
        if match is not None:
            names.add(match["name"])
    for name in sorted(names):
        with contextlib.suppress(CheckpointError, InUseError, OSError), locked(folder / name, wait=0):
            pass


def refuse_checkpoint(path: Path) -> None:
    """Raises CheckpointError if a path is inside a complete checkpoint."""
    if checkpoint := checkpoint_around(path):
        raise CheckpointError(
            f"{path} is in the checkpoint {checkpoint.name}, which stays as it is; write to another place"
        )


def checkpoint_around(path: Path) -> Path | None:
    """Returns the innermost complete checkpoint that a path is in, or None. The path need not exist.

    Programs of other kinds have files named manifest.json, too, so the name is not enough.
    """
    return next(filter(_is_checkpoint, Path(os.path.realpath(path)).parents), None)


def _is_checkpoint(folder: Path) -> bool:
    """True for a folder with a manifest: that of a checkpoint, or a damaged one in a folder named like a checkpoint."""
    try:
        with open_file(folder / _MANIFEST) as file:
            beginning = file.read(256)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        beginning = b""
    is_named = _ITERATION.fullmatch(folder.name) is not None and os.path.lexists(folder / _MANIFEST)
    return is_named or _MANIFEST_BEGINS.match(beginning) is not None


@contextlib.contextmanager
def created_folder(folder: Path) -> Iterator[None]:
    """Creates a folder and its parents, durably. At the end, removes the folders that it created and that are empty."""
    created = list(itertools.takewhile(lambda path: not path.is_dir(), (folder, *folder.parents)))
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
        for path in created:
            fsync(path.parent)
        yield
    finally:
        for path in created:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def delete(path: Path) -> None:
    """Removes a file, a link, or a folder with its contents, as far as possible. Raises no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def fsync(path: Path) -> None:
    """Flushes the content of a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- Acquiring a lock ------------------------------------------------------------------------------------------------


def _acquire(destination: Path, wait: float, in_use: str, stack: contextlib.ExitStack) -> _Release:
    """Acquires the lock and returns the function that releases it. Enters the parent folder on `stack` if it is new."""
    deadline = time.monotonic() + wait
    pause, longest = _POLL_S
    while True:
        try:
            if not destination.parent.is_dir():
                stack.enter_context(created_folder(destination.parent))
            release = _try_to_acquire(destination)
            if release is not None:
                return release
        except FileNotFoundError:  # another process removed the folder, which was still empty, or a leftover
            pass
        except OSError as error:  # the user knows the destination, not the lock
            raise OSError(error.errno, error.strerror, str(destination)) from None
        if time.monotonic() > deadline:
            raise InUseError(f"{in_use} by {_describe_owners(destination)}")
        time.sleep(pause)
        pause = min(2 * pause, longest)


def _try_to_acquire(destination: Path) -> _Release | None:
    """Acquires the lock, or returns None if another process holds it."""
    try:
        return _acquire_flock(destination)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
    return _acquire_folder(destination)


def _acquire_flock(destination: Path) -> _Release | None:
    """Acquires the lock with flock, or returns None if another process holds it.

    Raises OSError with an error number in `_NO_FLOCK` if the file system has no flock.
    """
    path = _flock_path(destination)
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        descriptor = os.open(path, os.O_RDONLY | flags)  # another user's, left by a killed process
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise _in_the_way(path) from None
        raise

    def release() -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                path.unlink()
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if a forked process has the file open
        os.close(descriptor)

    try:
        if _flock_is_local(descriptor):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous holder may have removed the file, and a third process locked a new one of the same name.
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise FileNotFoundError
        if not _is_lock(descriptor):
            raise _in_the_way(path)
        _let_others_read(descriptor, 0o644)
        with contextlib.suppress(OSError):  # the record only serves messages; the writer itself will report a full disk
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, Owner.this_process().encode(), 0)
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        return None
    except OSError as error:
        if error.errno in _NO_FLOCK and _is_lock(descriptor):
            path.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return release


def _is_lock(descriptor: int) -> bool:
    """True if an open file is a lock, and not a file that somebody else has put there.

    After a power failure, a lock may have only the beginning of its record, or zeros.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return False
    return _RECORD_BEGINNING.startswith(os.pread(descriptor, len(_RECORD_BEGINNING), 0).rstrip(b"\0"))


def _in_the_way(path: Path) -> OSError:
    return FileExistsError(
        errno.EEXIST, f"cannot be locked: {path.name} next to it is not a lock; remove or rename that file"
    )


def _acquire_folder(destination: Path) -> _Release | None:
    """Acquires the lock on a file system without flock, or returns None if another process holds it.

    A folder with one entry is renamed to the lock's name, which fails while a folder of this name has an entry. The
    entry of a dead holder is removed by its unique name, so the entry of a new holder is never touched.
    """
    path = _folder_path(destination)
    unique = unique_name()
    prepared = scratch_path(destination, unique, "locking")
    entry = path / unique

    def release() -> None:
        entry.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another process may have taken the lock already
            path.rmdir()

    prepared.mkdir()
    _let_others_read(prepared, 0o755)
    try:
        (prepared / unique).write_bytes(Owner.this_process().encode())
        _let_others_read(prepared / unique, 0o644)
        for _ in range(2):
            try:
                prepared.rename(path)
                return release
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            for old, owner in _owners(path).items():
                if owner is not None and owner.is_dead:
                    with contextlib.suppress(OSError):  # absent by now, or another user's
                        old.unlink()
    finally:
        delete(prepared)
    return None


def _let_others_read(lock: int | Path, mode: int) -> None:
    """Lets other users see who holds a lock, and acquire it once the holder is dead, whatever the umask is."""
    with contextlib.suppress(OSError):  # another user's file, or a file system without permissions
        os.chmod(lock, mode)


def _stem(destination: Path) -> str:
    """Returns the common part of the names of scratch paths and locks: the destination's name, shortened if it is long.

    Shortening a shortened name does not change it, so `clear_leftovers` can lock what it finds.
    """
    name = os.fsencode(destination.name)
    if len(name) <= _MAX_STEM_BYTES:
        return destination.name
    beginning = name[:100].decode("utf-8", "ignore")
    return f"{beginning}~{hashlib.blake2b(name, digest_size=8).hexdigest()}"


def _flock_path(destination: Path) -> Path:
    return destination.with_name(f".{_stem(destination)}.lock")


def _folder_path(destination: Path) -> Path:
    return destination.with_name(f".{_stem(destination)}.locked")


def _owners(lock: Path) -> dict[Path, Owner | None]:
    """Returns the owners recorded in a lock, which is a file or a folder: path of the record → owner."""
    if lock.is_dir():
        return {path: Owner.read(path) for path in _entries(lock)}
    owner = Owner.read(lock)
    return {} if owner is None else {lock: owner}


def _describe_owners(destination: Path) -> str:
    folder = _folder_path(destination)
    found = {**_owners(_flock_path(destination)), **_owners(folder)}
    owner = next(filter(None, found.values()), None)
    who = "another process" if owner is None else str(owner)
    if owner is not None and folder.is_dir() and (owner.is_dead or owner.machine != Owner.this_process().machine):
        return f"{who}; wait for it or stop it. If it has ended, remove {folder}"
    return f"{who}; wait for it or stop it"


def _flock_is_local(descriptor: int) -> bool:
    """True if other hosts do not see a flock on this file, because of the mount options of its file system."""
    device = os.fstat(descriptor).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open(_MOUNTS, encoding="utf-8", errors="replace") as mounts:
        for mount in mounts:
            before, _, after = mount.partition(" - ")
            if before.split()[2] == number:
                return not _LOCAL_FLOCK.isdisjoint(",".join((before.split()[5], after.split()[-1])).split(","))
    return False


def _start_time(pid: int) -> int | None:
    """Returns the start time of a live process, or None."""
    try:
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
        )
    except OSError:
        return None
    return None if state in ("Z", "X") else int(fields[18])


def _remove_leftovers(destination: Path, keep: str | None) -> None:
    """Removes the unfinished output next to a destination, except that of the unique name `keep`.

    Restores a folder whose writer was killed before the new folder had its name. This process must hold the lock of the
    destination.
    """
    name = re.escape(_stem(destination))
    leftover = re.compile(rf"\.{name}\.{_UNIQUE}\.(?:writing|former|deleting|locking)|\.{name}\.(?:writing|deleting)")
    kept = keep and scratch_path(destination, keep)
    for path in _entries(destination.parent):
        if not leftover.fullmatch(path.name) or path == kept:
            continue
        if path.suffix == ".former" and not os.path.lexists(destination):
            if not _SHORTENED.search(destination.name):  # `clear_leftovers` does not know the name before shortening
                path.rename(destination)
        else:
            delete(path)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
