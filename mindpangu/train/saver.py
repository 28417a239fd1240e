"""CheckpointSaver: when and in which thread checkpoints are written. What they hold is in `saving.py`."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

from mindpangu.checkpoint import CheckpointWriter
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import LoaderState
from mindpangu.errors import CheckpointError
from mindpangu.language_model import SavedExperts
from mindpangu.train.saving import TrainingSnapshot, take_snapshot, write_training
from mindpangu.train.step import TrainStep


class CheckpointSaver:
    """Writes a run's checkpoints, one at a time, in a thread while training goes on (`checkpoint.async_save`).

    A context manager around the training: its end waits for the last checkpoint, unless it is a KeyboardInterrupt,
    which gives an unfinished one up. Messages and errors come out in the thread that calls.

    Args:
        run, train_step: whose checkpoints these are.
        digests, loaded: see `take_snapshot`.
        previous: the checkpoint that the run was resumed from, if any.
        log: where messages go.
    """

    def __init__(
        self,
        run: RunFolder,
        train_step: TrainStep,
        digests: Mapping[str, str],
        loaded: str | None,
        previous: SavedExperts | None,
        log: Callable[[str], None],
    ):
        self._run, self._train_step, self._digests, self._loaded = run, train_step, digests, loaded
        self._previous, self._log = previous, log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._writer: CheckpointWriter | None = None
        self._saving: Future[float] | None = None

    def save(self, step: int, loader_state: LoaderState) -> None:
        """Saves the training as it stands after `step`, once the former checkpoint is written.

        Raises:
            CheckpointError: the former checkpoint, or without async_save this one, cannot be written.
        """
        waits, started = self._saving is not None and not self._saving.done(), time.perf_counter()
        self._finish()
        if waits:
            self._log(
                f"step {step} waited {time.perf_counter() - started:.1f} s for the checkpoint of step "
                f"{self._writer.step} before saving its own; a larger checkpoint.save_steps avoids this"
            )
        started = time.perf_counter()
        snapshot = take_snapshot(self._train_step, step, loader_state, self._digests, self._loaded)
        processes = self._train_step.processes
        timeout = self._train_step.config.parallelism.timeout
        self._writer = CheckpointWriter(self._run.checkpoints, step, processes.rank, processes.mesh.size, timeout)
        self._saving = self._thread.submit(self._write, snapshot, started)
        if not self._train_step.config.checkpoint.async_save:
            self._finish()

    def poll(self) -> None:
        """Says that the checkpoint is saved if it is; raises CheckpointError if it cannot be written."""
        if self._saving is not None and self._saving.done():
            self._finish()

    def __enter__(self) -> "CheckpointSaver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and self._saving is not None:
            self._writer.cancel()
        try:
            self._finish()
        except CheckpointError as failure:
            if error is None:
                raise
            self._log(str(failure))  # beside the error that ended the training
        finally:
            self._thread.shutdown()

    def _finish(self) -> None:
        """Waits for the checkpoint under way, if there is one; says that it is saved, or raises what went wrong."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        self._train_step.processes.report_status(doing=f"writing the checkpoint of step {self._writer.step}")
        try:
            wait([saving])
        except KeyboardInterrupt:
            self._writer.cancel()
            raise
        seconds = saving.result()
        self._log(f"saved checkpoint of step {self._writer.step} in {seconds:.1f} s")

    def _write(self, snapshot: TrainingSnapshot, started: float) -> float:
        """In the thread; returns the seconds since `started`."""
        model = self._train_step.model
        self._previous = write_training(self._run, self._writer, model, snapshot, self._previous)
        return time.perf_counter() - started
