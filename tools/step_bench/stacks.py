"""Trains a case with one stack, in a process of its own that takes steps when it is asked to."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from mindpangu.checkpoint.tensor_file import TensorInfo, chunks_of, encode_stream
from mindpangu.errors import MindPanguError
from mindpangu.files import write_bytes_atomically
from step_bench.cases import LEARNING_RATE, Case

STACKS = ("mindpangu", "composed", "torch", "torch.compile")


@dataclass(frozen=True)
class Steps:
    """Some steps in a row: seconds and loss of each, and the most memory that the process has had."""

    seconds: list[float]
    losses: list[float]
    peak_rss_bytes: int


class Process:
    """A stack that trains a case."""

    def __init__(self, stack: str, case: Case, weights: Path):
        context = multiprocessing.get_context("spawn")
        self.stack = stack
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(stack, case, weights, other), daemon=True)
        self._process.start()
        other.close()

    def run(self, count: int) -> Steps:
        """Takes `count` steps and returns their measurements."""
        try:
            self._connection.send(count)
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise MindPanguError(f"the process of {self.stack} has died; it may have run out of memory") from None
        if isinstance(answer, str):
            raise MindPanguError(f"{self.stack}: {answer}")
        return answer

    def stop(self) -> None:
        self._connection.close()
        self._process.join(10)
        self._process.kill()


@contextmanager
def processes(stacks: list[str], case: Case, folder: Path) -> Iterator[list[Process]]:
    """Starts a process for each stack. The first must be mindpangu's: it writes the weights that all begin with."""
    weights = folder / f"{case.name}_{case.layers}.safetensors"
    with ExitStack() as cleanup:
        started = []
        for name in stacks:
            process = Process(name, case, weights)
            cleanup.callback(process.stop)
            started.append(process)
            if not weights.exists():
                process.run(0)  # waits until the weights are written
        yield started


def _serve(stack: str, case: Case, weights: Path, connection: Connection) -> None:
    try:
        step, finish = _open(stack, case, weights)
        while True:
            count = connection.recv()
            seconds = []
            losses = []
            for _ in range(count):
                started = time.perf_counter()
                losses.append(step())
                seconds.append(time.perf_counter() - started)
            finish()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            connection.send(Steps(seconds, losses, peak))
    except EOFError:
        return
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def _open(stack: str, case: Case, weights: Path) -> tuple[Callable[[], float], Callable[[], None]]:
    """Returns a function that takes a step and returns its loss, and one that waits until nothing runs any more."""
    if stack.startswith("torch"):
        from step_bench.torch_model import open_torch

        return open_torch(case, weights, compiled=stack == "torch.compile"), lambda: None
    if stack == "composed":
        os.environ["MINDPANGU_OPS"] = "composed"
    return _open_mindpangu(case, weights)


def _open_mindpangu(case: Case, weights: Path) -> tuple[Callable[[], float], Callable[[], None]]:
    os.environ.setdefault("GLOG_v", "3")
    from mindpangu.language_model import LanguageModel, ModelParts
    from mindpangu.train.run import set_device
    from mindpangu.train.step import TrainStep

    config = case.config()
    set_device(config)
    table = case.table(config)
    model = LanguageModel(ModelParts(config, {"main": case.tokenizer()}, table))  # type: ignore[dict-item]
    model.store.initialize()
    if not weights.exists():
        _save(model, weights)
    train_step = TrainStep(model)
    batches = case.batches()
    planned = [([batch], [model.planner.plan(batch)]) for batch in (next(batches),)]

    def step() -> float:
        batch = next(batches)
        planned.append(([batch], [model.planner.plan(batch)]))
        current = planned.pop(0)
        return train_step.run(*current, LEARNING_RATE, planned[0][1]).loss

    return step, train_step.finish


def _save(model: "LanguageModel", weights: Path) -> None:  # type: ignore[name-defined]  # noqa: F821
    arrays = {name: parameter.asnumpy() for name, parameter in model.decoder.parameters.items()}
    for layer, domains in enumerate(model.store.weights):
        for domain, slabs in enumerate(domains):
            arrays |= {f"experts.{layer}.{domain}.{name}": slab for name, slab in slabs.items()}
    if model.parts.table is not None:
        for layer in range(len(model.store.weights)):
            for domain, one in enumerate(model.domains):
                arrays[f"table.{layer}.{domain}"] = model.parts.table.array(layer, one.name)
    tensors = {name: TensorInfo(array.dtype, array.shape) for name, array in arrays.items()}
    write_bytes_atomically(weights, encode_stream(tensors, {}, lambda name: chunks_of(arrays[name])))
