"""Tasks: published sets of questions. What a task is, and where its questions come from.

Every file of `mindpangu/evaluation/tasks` defines one task, named like the file: its `TASK`, and a function that reads
the questions of a file in the form in which the publisher ships it. Adding a task is adding a file.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindpangu.display import describe_error
from mindpangu.errors import EvaluationError


@dataclass(frozen=True)
class Question:
    """A question with its choices, as the model reads it.

    Attributes:
        prompt: text before the answer.
        choices: texts that may follow the prompt.
        answer: index of the right choice; None if the publisher keeps it back.
        subject: the part of the task that it belongs to, or "". The score is then the mean over subjects.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int | None
    subject: str = ""


NORMALIZATIONS = {
    "sum": "log p of the whole choice",
    "tokens": "log p per token of the choice",
    "characters": "log p per character of the choice",
    "unconditional": "log p of the choice minus its log p without the prompt",
}


@dataclass(frozen=True)
class Task:
    """A task whose questions have choices; the choice with the highest likelihood is the model's answer.

    Attributes:
        title: its name in print.
        category: e.g. "reading comprehension".
        language: "zh" or "en".
        published: where its files come from.
        layouts: alternatives, each a tuple of patterns of files below the data folder. The first alternative of which
            every pattern matches is used.
        questions: reads the questions of a file. Raises ValueError or LookupError if the file has another form.
        normalization: how the likelihoods of choices of different lengths are compared; see NORMALIZATIONS.
    """

    title: str
    category: str
    language: str
    published: str
    layouts: tuple[tuple[str, ...], ...]
    questions: Callable[[Path], Iterator[Question]]
    normalization: str = "tokens"

    def files(self, folder: Path) -> list[Path]:
        """Returns the task's files below a data folder, sorted; an empty list if they are not there."""
        for layout in self.layouts:
            found = [sorted(path for path in folder.glob(pattern) if path.is_file()) for pattern in layout]
            if all(found):
                return sum(found, [])
        return []

    def load(self, files: Sequence[Path]) -> list[Question]:
        """Reads the questions of files.

        Raises:
            EvaluationError: a file cannot be read, or has another form.
        """
        questions: list[Question] = []
        for path in files:
            before = len(questions)
            try:
                for question in self.questions(path):
                    _check(question)
                    questions.append(question)
            except (OSError, ValueError, LookupError, TypeError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else describe_error(error)
                raise EvaluationError(
                    f"{path}: after {len(questions) - before} questions of {self.title}: {reason}; expected is the "
                    f"form that {self.published} publishes"
                ) from None
        return questions


@functools.cache
def all_tasks() -> dict[str, Task]:
    """Returns name → task, sorted by name."""
    from mindpangu.evaluation import tasks

    names = sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))
    return {name: importlib.import_module(f"{tasks.__name__}.{name}").TASK for name in names}


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


_GROUPS = {"chinese": ("zh",), "english": ("en",), "all": ("zh", "en")}


def _check(question: Question) -> None:
    if len(question.choices) < 2 or not all(question.choices):
        raise ValueError(f"a question has the choices {list(question.choices)}; needed are two or more")
    if question.answer is not None and not 0 <= question.answer < len(question.choices):
        raise ValueError(f"the answer is choice {question.answer} of {len(question.choices)}")
