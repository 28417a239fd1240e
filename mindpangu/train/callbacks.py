"""Callbacks of the training loop: small hooks, called in order. Each does one thing, independently of the others."""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from mindpangu.files import open_nofollow


@dataclass(frozen=True)
class StepRecord:
    """One line of metrics.jsonl.

    Attributes:
        loss: mean over the step's targets, in nats.
        lr: learning rate.
        global_norm: gradient norm before clipping.
        overflow: True if loss or gradient norm is not finite.
        loss_scale: the loss scale that the step used; 1.0 in fp32.
        per_step_time: seconds.
        tokens_per_s: training tokens per second.
        imbalance: load of the busiest expert divided by the mean load, averaged over layers and slots.
        experts_activated, bytes_to_device, bytes_to_host, lookup_s, update_s, wait_s: see `experts.ExpertTraffic`.
        peak_memory: peak memory of the process so far, in GiB.
        domains: name of each domain in the step → its loss.
        skipped: why the step was skipped, or None.
    """

    step: int
    loss: float
    lr: float
    global_norm: float
    overflow: bool
    loss_scale: float
    per_step_time: float
    tokens_per_s: float
    imbalance: float
    experts_activated: int
    bytes_to_device: int
    bytes_to_host: int
    lookup_s: float
    update_s: float
    wait_s: float
    peak_memory: float
    domains: dict[str, float]
    skipped: str | None


class Callback:
    """Hooks of the training loop; each does nothing by default.

    However training ends, `on_end` is called on every callback whose `on_start` has returned, in reverse order.
    """

    def on_start(self, first_step: int, last_step: int) -> None: ...

    def on_step(self, record: StepRecord) -> None: ...

    def on_message(self, text: str) -> None: ...

    def on_end(self) -> None: ...


class Progress(Callback):
    """Prints step lines: above a progress bar on a terminal, plain elsewhere.

    Args:
        every: steps between two lines.
        log_file: file to append the lines to as well.
        quiet: True to write to the file only.
    """

    def __init__(self, every: int, log_file: Path | None = None, quiet: bool = False):
        self.every = every
        self.quiet = quiet
        self.log_path = log_file
        self._bar: tqdm | None = None
        self._log: TextIO | None = None

    def on_start(self, first_step: int, last_step: int) -> None:
        self.last_step = last_step
        if self.log_path is not None:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            # messages may contain file names that are not UTF-8
            self._log = open(  # noqa: SIM115 - open for the whole training
                self.log_path,
                "a",
                encoding="utf-8",
                errors="backslashreplace",
                buffering=1,
                opener=open_nofollow,
            )
        if sys.stderr.isatty() and not self.quiet:
            self._bar = tqdm(total=last_step, initial=first_step - 1, unit="step", desc="train", dynamic_ncols=True)

    def on_step(self, record: StepRecord) -> None:
        if self._bar is not None:
            self._bar.update()
        if record.step % self.every == 0 or record.step == self.last_step or record.skipped:
            self.on_message(step_line(record, self.last_step))

    def on_message(self, text: str) -> None:
        if not self.quiet:
            with contextlib.suppress(OSError):  # a lost terminal or a closed pipe must not end a training
                # unlike print, tqdm.write keeps a progress bar below the lines
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()
        if self._log is not None:
            self._log.write(text + "\n")

    def on_end(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._log is not None:
            self._log.close()


def step_line(record: StepRecord, last_step: int) -> str:
    """Formats the step line, with the field names that MindSpore users search their logs for."""
    width = len(str(last_step))
    domains = " ".join(f"{name} {loss:.3f}" for name, loss in record.domains.items())
    line = (
        f"step:[{record.step:>{width}}/{last_step}], loss: {record.loss:.4f}, lr: {record.lr:.3e}, "
        f"global_norm: {record.global_norm:.3f}, overflow cond: {record.overflow}, loss_scale: {record.loss_scale:g}, "
        f"per_step_time: {1000 * record.per_step_time:.0f}ms, tokens/s: {record.tokens_per_s:.0f}, "
        f"imbalance: {record.imbalance:.2f}, experts: {record.experts_activated}, "
        f"to_device: {record.bytes_to_device / 1e6:.1f}MB, to_host: {record.bytes_to_host / 1e6:.1f}MB, "
        f"wait: {1000 * record.wait_s:.0f}ms, domains: {domains}"
    )
    return line if record.skipped is None else f"{line}, SKIPPED: {record.skipped}"
