"""A task is a published set of questions with choices; it loads them from its files. `tasks/` has all tasks."""

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
                return [path for paths in found for path in paths]
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


def _check(question: Question) -> None:
    if len(question.choices) < 2 or not all(isinstance(choice, str) and choice for choice in question.choices):
        raise ValueError(f"a question has the choices {list(question.choices)}; needed are two or more texts")
    if question.answer is not None and question.answer not in range(len(question.choices)):
        raise ValueError(f"the answer is choice {question.answer!r} of {len(question.choices)}, counted from 0")
