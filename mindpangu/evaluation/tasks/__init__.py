"""The tasks. Every file defines one, named like the file: its `TASK`, and a function that reads the questions of a file
in the form in which the publisher ships it. Adding a task is adding a file.
"""

import functools
import importlib
import pkgutil

from mindpangu.errors import EvaluationError
from mindpangu.evaluation.task import Task

_GROUPS = {"chinese": ("zh",), "english": ("en",), "all": ("zh", "en")}


@functools.cache
def all_tasks() -> dict[str, Task]:
    """Returns name → task, sorted by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").TASK for name in names}


def tasks_named(text: str) -> dict[str, Task]:
    """Returns the tasks of a comma-separated list of names, or of "chinese", "english", or "all".

    Raises:
        EvaluationError: a name is unknown.
    """
    known = all_tasks()
    chosen: dict[str, Task] = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name in _GROUPS:
            chosen |= {each: task for each, task in known.items() if task.language in _GROUPS[name]}
        elif name in known:
            chosen[name] = known[name]
        else:
            raise EvaluationError(f"there is no task {name!r}; known are {', '.join([*_GROUPS, *known])}")
    if not chosen:
        raise EvaluationError(f"--tasks names no task; known are {', '.join([*_GROUPS, *known])}")
    return chosen
