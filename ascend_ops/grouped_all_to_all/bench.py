"""Shapes at which `python -m ascend_ops.bench` measures the exchange: 4 processes in 2 groups of 2, all at once.

Run as a program (`python -m ascend_ops.grouped_all_to_all.bench RANK TOKENS HIDDEN`), this module is one of these
processes: it reads one kind of work per line and answers with a line when the work is done.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ascend_ops.bench import runs
from ascend_ops.bench.case import Case, Prepared, Work

if TYPE_CHECKING:
    from ascend_ops.grouped_all_to_all import Group

RANKS = 4  # processes
SIZE = 2  # processes per group
EXPERTS = 16
VOCAB = 8_000
CHUNKS = 4
REPEATS = 5  # runs that the processes do by themselves before they answer
SHAPES = ((2048, 1024), (2048, 5120))
# direction → its backends; "separate" is rre_dispatch and then the exchange, "chunked" is fused in CHUNKS chunks
BACKENDS = {"exchange": ("exchange",), "dispatch": ("fused", "separate", "chunked")}


def cases(quick: bool) -> Iterator[Case]:
    """Yields the exchange of sorted rows, then sorting and exchange in three ways.

    Without kernels there are no cases: the composed form needs a job started by MindSpore's launcher.
    """
    if "cpu" in runs.implementations("grouped_all_to_all"):
        for shape in SHAPES[:1] if quick else SHAPES:
            yield _case(*shape)


def _case(tokens: int, hidden: int) -> Case:
    work = Work(moved_bytes=RANKS * 2 * 4 * tokens * hidden)
    return Case(
        op="grouped_all_to_all",
        shape=f"T{tokens} H{hidden} R2+2",
        limit="in each of the same 4 processes at once, T·H read and written by memcpy",
        work=dict.fromkeys(BACKENDS, work),
        prepare=lambda: _prepare(tokens, hidden),
    )


def _prepare(tokens: int, hidden: int) -> Prepared:
    workers = Workers(tokens, hidden)
    functions = {
        direction: {
            **{"cpu" if kind == kinds[0] else kind: workers.run(kind) for kind in kinds},
            "limit": workers.run("copy"),
        }
        for direction, kinds in BACKENDS.items()
    }

    def expected(direction: str) -> list[np.ndarray]:
        return [np.ones(RANKS)]  # every process compares with the reference itself, and answers 1 + its error

    return Prepared(functions, expected, repeats=REPEATS, close=workers.close)


class Workers:
    """The processes of one case."""

    def __init__(self, tokens: int, hidden: int):
        environment = {
            **os.environ,
            "MINDPANGU_JOB_ID": f"bench-{uuid.uuid4().hex[:8]}",
            "OMP_NUM_THREADS": "1",
            "MINDPANGU_OPS": "cpu",
        }
        self._folder = tempfile.TemporaryDirectory()
        self._logs = [Path(self._folder.name) / f"{rank}.log" for rank in range(RANKS)]
        with contextlib.ExitStack() as logs:
            self._processes = [
                subprocess.Popen(
                    [sys.executable, "-m", "ascend_ops.grouped_all_to_all.bench", *map(str, (rank, tokens, hidden))],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=logs.enter_context(self._logs[rank].open("wb")),
                    encoding="utf-8",
                )
                for rank in range(RANKS)
            ]
        self._inputs = [process.stdin for process in self._processes if process.stdin]
        self._outputs = [process.stdout for process in self._processes if process.stdout]

    def run(self, kind: str) -> Callable[[], list[np.ndarray]]:
        """Returns a function that does the work REPEATS times in all processes and returns their largest errors."""

        def run_in_all() -> list[np.ndarray]:
            for pipe in self._inputs:
                with contextlib.suppress(BrokenPipeError):
                    pipe.write(f"{kind}\n")
                    pipe.flush()
            answers = [pipe.readline() for pipe in self._outputs]
            for rank, answer in enumerate(answers):
                if not answer.startswith("done "):
                    self.close(failed=True)
                    raise RuntimeError(f"process {rank} of the exchange failed: {self._log_ends[rank]}")
            return [np.array([1 + float(answer.split()[1]) for answer in answers])]

        return run_in_all

    def close(self, failed: bool = False) -> None:
        """Ends the processes, which exit when their input ends; kills them if one has failed."""
        for process, input_, output in zip(self._processes, self._inputs, self._outputs, strict=True):
            with contextlib.suppress(BrokenPipeError):
                input_.close()
            if failed:
                process.kill()
            process.wait()
            output.close()
        self._log_ends = [log.read_text("utf-8", errors="replace")[-400:] for log in self._logs]
        self._folder.cleanup()


class _Workload:
    """The inputs of all ranks of one group, drawn from the same seed in every process, and their route plan.

    Attributes:
        me: this rank in the group.
        capacity: rows that the fullest rank receives.
        chunk_capacity: the same for one chunk.
        counts: int32 [R] rows sent to each rank, and rows received from each rank.
        chunk_counts: the same for each chunk, int32 [chunks, R].
        inputs: this rank's x_TH, token ids, slot ids, and table.
        rows_TH: this rank's rows, sorted by expert.
    """

    def __init__(self, rank: int, tokens: int, hidden: int):
        self.me = rank % SIZE
        rng = np.random.default_rng(rank // SIZE)
        self._x = [rng.standard_normal((tokens, hidden), np.float32) for _ in range(SIZE)]
        self._ids = [rng.integers(0, VOCAB, tokens).astype(np.int32) for _ in range(SIZE)]
        self._slots = [np.zeros(tokens, np.int32) for _ in range(SIZE)]
        self._table_DV = rng.integers(0, EXPERTS, (1, VOCAB)).astype(np.int32)
        length = tokens // CHUNKS
        self._chunks = [slice(k * length, (k + 1) * length) for k in range(CHUNKS)]

        counts_RR = self._plan(slice(None))
        chunks_RR = [self._plan(chunk) for chunk in self._chunks]
        self.capacity = int(counts_RR.sum(0).max())
        self.chunk_capacity = int(max(chunk_RR.sum(0).max() for chunk_RR in chunks_RR))
        self.counts = (counts_RR[self.me], counts_RR[:, self.me].copy())
        self.chunk_counts = (
            np.stack([chunk_RR[self.me] for chunk_RR in chunks_RR]),
            np.stack([chunk_RR[:, self.me] for chunk_RR in chunks_RR]),
        )
        self.inputs = (self._x[self.me], self._ids[self.me], self._slots[self.me], self._table_DV)
        self.rows_TH = self._x[self.me][np.argsort(self._table_DV[0][self._ids[self.me]], kind="stable")]

    def expected(self, kind: str) -> list[np.ndarray]:
        """Returns the rows that this rank receives, by the reference; for "chunked" the rows of each chunk."""
        from ascend_ops.grouped_all_to_all import reference

        chunked = kind == "chunked"
        capacity = self.chunk_capacity if chunked else self.capacity
        received = []
        for part in self._chunks if chunked else [slice(None)]:
            x_of_part = [x_TH[part] for x_TH in self._x]
            ids_of_part = [ids_T[part] for ids_T in self._ids]
            slots_of_part = [slots_T[part] for slots_T in self._slots]
            rows, _, _ = reference.dispatch_all_to_all(
                x_of_part, ids_of_part, slots_of_part, self._table_DV, EXPERTS, capacity
            )
            received.append(rows[self.me])
        return received

    def _plan(self, part: slice) -> np.ndarray:
        """Returns int32 [R, R]: the number of rows of the tokens in `part` that go from rank to rank."""
        from ascend_ops.rre_dispatch.reference import send_order

        sources = zip(self._ids, self._slots, strict=True)
        sent = [send_order(ids_T[part], slots_T[part], self._table_DV, EXPERTS, SIZE)[0] for ids_T, slots_T in sources]
        return np.stack([counts_RG.sum(1) for counts_RG in sent]).astype(np.int32)


def _compile(workload: _Workload, group: "Group") -> dict[str, Callable]:
    """Returns kind of work → a function that does it once and returns its rows."""
    import mindspore as ms
    from mindspore import Tensor

    from ascend_ops.grouped_all_to_all import dispatch_all_to_all, first_order, grouped_all_to_all
    from ascend_ops.rre_dispatch import rre_dispatch
    from ascend_ops.waiting import wait_for_all

    capacity = workload.capacity
    chunk_capacity = workload.chunk_capacity
    rows_QH = Tensor(workload.rows_TH)
    inputs = tuple(map(Tensor, workload.inputs))
    counts = tuple(map(Tensor, workload.counts))
    chunk_counts = tuple(map(Tensor, workload.chunk_counts))

    @ms.jit
    def exchange(rows_QH, send_R, receive_R):
        return grouped_all_to_all(rows_QH, send_R, receive_R, capacity, group, first_order())

    @ms.jit
    def fused(x_TH, ids_T, slots_T, table_DV, send_R, receive_R):
        return dispatch_all_to_all(
            x_TH, ids_T, slots_T, table_DV, EXPERTS, send_R, receive_R, capacity, group, first_order()
        )

    @ms.jit
    def separate(x_TH, ids_T, slots_T, table_DV, send_R, receive_R):
        rows_QH, counts_G, positions_T, _ = rre_dispatch(x_TH, ids_T, slots_T, table_DV, EXPERTS)
        rows_CH, order = grouped_all_to_all(rows_QH, send_R, receive_R, capacity, group, first_order())
        return rows_CH, counts_G, positions_T, order

    @ms.jit
    def chunked(x_TH, ids_T, slots_T, table_DV, send, receive):
        rows, counts, positions, _, order = dispatch_all_to_all(
            x_TH, ids_T, slots_T, table_DV, EXPERTS, send, receive, chunk_capacity, group, first_order(), CHUNKS
        )
        return rows, counts, positions, order

    return {
        "exchange": lambda: wait_for_all(exchange(rows_QH, *counts)[:1]),
        "fused": lambda: wait_for_all(fused(*inputs, *counts)[:1]),
        "separate": lambda: wait_for_all(separate(*inputs, *counts)[:1]),
        "chunked": lambda: wait_for_all(chunked(*inputs, *chunk_counts)[0]),
    }


def worker(rank: int, tokens: int, hidden: int) -> None:
    """Runs one process, rank % 2 of group rank // 2: does the work that each line of its input names."""
    import mindspore as ms

    from ascend_ops.bench import limits
    from ascend_ops.bench.case import largest_error
    from ascend_ops.grouped_all_to_all import join

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not be mistaken for an answer
    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    num_bytes = 2 * 4 * tokens * hidden
    group = join(f"bench{rank // SIZE}", rank % SIZE, SIZE, capacity_bytes=num_bytes)
    workload = _Workload(rank, tokens, hidden)
    work = _compile(workload, group)
    work["copy"] = limits.copy(num_bytes) or (lambda: None)

    checked = {"copy"}
    for line in sys.stdin:
        kind = line.strip()
        error = 0.0
        for _ in range(REPEATS):
            rows = work[kind]()
        if kind not in checked:
            checked.add(kind)
            error = largest_error(rows, workload.expected(kind))
        answers.write(f"done {error}\n")
        answers.flush()
    group.close()


if __name__ == "__main__":
    worker(*map(int, sys.argv[1:]))
