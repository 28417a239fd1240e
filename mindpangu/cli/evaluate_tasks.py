"""The tasks of `mindpangu evaluate`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.domains import Domain
from mindpangu.errors import EvaluationError

if TYPE_CHECKING:
    from mindpangu.evaluation.task import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_argument_group("tasks, instead of held-out text")
    tasks.add_argument(
        "--tasks", metavar="NAMES", help="Answer the questions of these tasks, e.g. c3,ocnli; or chinese, english, all."
    )
    tasks.add_argument("--data", metavar="DIR", type=Path, help="Folder with the tasks' files, as published.")
    tasks.add_argument("--list", action="store_true", help="List all tasks and the files found in --data, and exit.")
    tasks.add_argument(
        "--domain", metavar="NAME", help="Answer with the experts of this domain (default: the task's language)."
    )
    tasks.add_argument(
        "--limit", metavar="N", type=int, help="Ask only N questions of each task, spread evenly (default: all)."
    )
    tasks.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        default=32,
        help="Score at most this many choices at once (default: %(default)s).",
    )


def refuse_options_of_tasks(options: argparse.Namespace) -> None:
    """Raises EvaluationError if an option was given that only tasks use."""
    for name in ("data", "domain", "limit"):
        if getattr(options, name) is not None:
            raise EvaluationError(f"--{name} is for tasks; give --tasks NAMES too, or leave it out")


def list_tasks(options: argparse.Namespace) -> None:
    """Prints all tasks, and which of their files are in the data folder."""
    from mindpangu.evaluation.task import NORMALIZATIONS
    from mindpangu.evaluation.tasks import all_tasks

    print(f"{'task':<14} {'category':<22} {'language':<8} {'files':<24} published by")
    for name, task in all_tasks().items():
        files = task.files(options.data) if options.data else []
        found = f"{len(files)} found" if len(files) > 1 else str(files[0].relative_to(options.data)) if files else "–"
        print(f"{name:<14} {task.category:<22} {task.language:<8} {found:<24} {task.published}")
    print("\nThe choice with the highest likelihood is the answer:")
    for normalization, meaning in NORMALIZATIONS.items():
        named = [name for name, task in all_tasks().items() if task.normalization == normalization]
        if named:
            print(f"  {meaning}: {', '.join(named)}")


def run_tasks(options: argparse.Namespace, config: Config) -> None:
    """Answers the questions of the tasks that are not up to date, and prints a table of all."""
    from mindpangu.checkpoint import CheckpointReader, refuse_other_model
    from mindpangu.evaluation.tasks import tasks_named

    if options.data is None:
        raise EvaluationError("--tasks needs --data DIR, the folder with the tasks' files; --list names them")
    for option, value in (("--limit", options.limit), ("--batch-size", options.batch_size)):
        if value is not None and value < 1:
            raise EvaluationError(f"{option} is {value}; allowed: >= 1")
    tasks = tasks_named(options.tasks)
    files = {name: task.files(options.data) for name, task in tasks.items()}
    missing = [name for name in tasks if not files[name]]
    if missing:
        raise EvaluationError(_missing_files(options.data, {name: tasks[name] for name in missing}))
    folder = RunFolder.from_config(config)
    reader = CheckpointReader(options.checkpoint or folder.root)
    refuse_other_model(reader, config)

    from functools import partial

    from tqdm import tqdm

    from mindpangu.evaluation.choices import answer_questions
    from mindpangu.evaluation.task_record import FORMAT_VERSION, SavedTask, format_tasks, task_result
    from mindpangu.generation.generator import Generator
    from mindpangu.stage import ResultFile, hash_files
    from mindpangu.train.run import set_device

    generator: Generator | None = None
    results = {}
    for name, task in tasks.items():
        inputs = {
            "format_version": FORMAT_VERSION,
            "checkpoint": reader.digest,
            "questions": hash_files(files[name]),
            "limit": options.limit,
            "domain": options.domain,
            "normalization": task.normalization,
            "precision": config.context.precision,
        }
        result = ResultFile(folder.task_result(name), inputs)
        if not result.is_current(SavedTask):
            questions = spread_evenly(task.load(files[name]), options.limit)
            if all(question.answer is None for question in questions):
                raise EvaluationError(f"{name}: no question in {files[name][0]} has an answer; use the validation set")
            if generator is None:
                set_device(config)
                generator = Generator.load(reader, options.batch_size, context=config.context)
            domain = _domain(options.domain, task, generator.parts.domains)
            progress = partial(tqdm, desc=name, unit="batch", disable=None)
            predictions = answer_questions(
                generator, questions, domain, task.normalization, options.batch_size, progress
            )
            described = {"title": task.title, "category": task.category, "language": task.language, "domain": domain}
            result.write({"step": reader.step, **described, **task_result(predictions)})
        results[name] = result.read(SavedTask)
    print(format_tasks(results))
    print(f"evaluate: step {reader.step} → {folder.task_result(next(iter(results))).parent}")


def spread_evenly(items: list, count: int | None) -> list:
    """Returns `count` of the items, evenly spread over the list, or all of them."""
    if count is None or count >= len(items):
        return items
    return [items[i * len(items) // count] for i in range(count)]


def _domain(chosen: str | None, task: "Task", domains: tuple[Domain, ...]) -> str:
    names = [domain.name for domain in domains]
    name = chosen or task.language
    if name not in names:
        raise EvaluationError(f"the model has no domain {name!r}; choose one with --domain: {', '.join(names)}")
    return name


def _missing_files(data: Path, tasks: "dict[str, Task]") -> str:
    lines = [f"{data} lacks the files of {len(tasks)} of the tasks:"]
    for name, task in tasks.items():
        alternatives = " or ".join(" and ".join(layout) for layout in task.layouts)
        lines.append(f"  {name}: {alternatives}, published by {task.published}")
    return "\n".join(lines)
