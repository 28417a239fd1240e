"""Checks the environment of a verb: variables that would change its results, and limits that it exceeds."""

import errno
import os
import resource
import sys

from mindpangu.errors import ConfigError, MindPanguError

_RANK_VARIABLES = ("RANK_ID", "RANK_SIZE", "MS_NODE_ID", "MS_WORKER_NUM")
_LIMITS = {
    resource.RLIMIT_AS: ("address space", "ulimit -v", 1 << 30, "GiB"),
    resource.RLIMIT_DATA: ("data segment", "ulimit -d", 1 << 30, "GiB"),
    resource.RLIMIT_NPROC: ("number of processes and threads of this user", "ulimit -u", 1, ""),
    resource.RLIMIT_NOFILE: ("number of open files", "ulimit -n", 1, ""),
    resource.RLIMIT_FSIZE: ("size of a file", "ulimit -f", 1 << 30, "GiB"),
}
_NO_MEMORY = (
    "annot allocate memory",
    "failed to map segment",
    "Memory isn't enough",
    "malloc memory failed",
    "bad_alloc",
)
"""Words of the loader, of MindSpore, and of C++ when memory is exhausted."""
_BEYOND_MEMORY = (
    "Maximum allowed dimension exceeded",
    "array is too big",
    "cannot fit 'int' into an index-sized integer",
    "int too large to convert to C",
)
"""Words of NumPy and Python for sizes that no memory could have, as of --model.hidden_size 4000000000000000000."""
_MEMORY = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
_LIMIT_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def check_variables() -> None:
    """Refuses or ignores variables that would change what a verb does.

    Raises:
        ConfigError: MindSpore's compile cache is switched on.
    """
    if os.environ.get("MS_COMPILER_CACHE_ENABLE", "0") not in ("", "0"):
        raise ConfigError(
            f"MS_COMPILER_CACHE_ENABLE is {os.environ['MS_COMPILER_CACHE_ENABLE']}: MindSpore's compile cache gives "
            "wrong losses; unset the variable"
        )
    # msrun sets MS_ROLE together with the variables of a rank; without it they are left over from something else
    stale = [name for name in _RANK_VARIABLES if name in os.environ]
    if stale and "MS_ROLE" not in os.environ and "MS_SIMULATION_LEVEL" not in os.environ:
        values = ", ".join(f"{name}={os.environ.pop(name)}" for name in stale)
        print(f"mindpangu: ignoring {values}, because msrun did not start this process", file=sys.stderr)


def check_working_directory() -> None:
    """Raises ConfigError if the working directory was removed: everything with a relative path would seem missing."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the current directory was removed; change to one that exists") from None


def describe_exhaustion(error: BaseException) -> str | None:
    """Returns which resource ran out, and its limit, or None if the exception has another reason."""
    if isinstance(error, MindPanguError):  # its remedy would solve another problem
        cause = error.__context__
        is_limit = isinstance(cause, MemoryError) or getattr(cause, "errno", None) in _LIMIT_ERRORS
        return describe_exhaustion(cause) if cause is not None and is_limit else None
    text = str(error)
    if isinstance(error, OSError):
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return f"too many files are open{_limits(resource.RLIMIT_NOFILE)}"
        if error.errno == errno.EFBIG:
            return f"{error.filename or 'a file'} is too large{_limits(resource.RLIMIT_FSIZE)}"
        if error.errno == errno.EAGAIN and error.filename is None:
            return f"no process can be started{_limits(resource.RLIMIT_NPROC)}"
        if error.errno != errno.ENOMEM:
            return None
    elif "can't start new thread" in text or "Resource temporarily unavailable" in text:
        return f"no thread can be started{_limits(resource.RLIMIT_NPROC, *_MEMORY)}"
    elif isinstance(error, MemoryError) or (
        isinstance(error, (ValueError, OverflowError)) and any(words in text for words in _BEYOND_MEMORY)
    ):
        pass
    elif lines := [line for line in text.splitlines() if any(words in line for words in _NO_MEMORY)]:
        text = lines[-1].strip()  # MindSpore adds its own call stack
    else:
        return None
    reason = f": {text.rstrip('.')}" if text else ""
    return f"not enough memory{reason}{_limits(*_MEMORY)}. Make the model or the batch smaller, or raise the limit"


def _limits(*kinds: int) -> str:
    """Describes the limits that are set, e.g. " (the address space is limited to 4.0 GiB, see ulimit -v)"."""
    found = []
    for kind in kinds:
        name, command, unit, unit_name = _LIMITS[kind]
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            value = f"{limit / unit:.1f} {unit_name}" if unit_name else f"{limit:,}"
            found.append(f"the {name} is limited to {value}, see {command}")
    return f" ({'; '.join(found)})" if found else ""
