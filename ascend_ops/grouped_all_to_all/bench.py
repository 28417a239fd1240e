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

import numpy as np

from ascend_ops.bench import runs
from ascend_ops.bench.case import Case, Prepared, Work

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
                    stderr=logs.enter_context(self._logs[rank].open("w")),
                    text=True,
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
        self._log_ends = [log.read_text(errors="replace")[-400:] for log in self._logs]
        self._folder.cleanup()


def worker(rank: int, tokens: int, hidden: int) -> None:
    """Runs one process: rank % 2 of group rank // 2."""
    import mindspore as ms
    from mindspore import Tensor

    from ascend_ops.bench import case as bench_case
    from ascend_ops.bench import limits
    from ascend_ops.grouped_all_to_all import dispatch_all_to_all, first_order, grouped_all_to_all, join, reference
    from ascend_ops.rre_dispatch import rre_dispatch
    from ascend_ops.rre_dispatch.reference import send_order

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not be mistaken for an answer
    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    me = rank % SIZE
    group = join(f"bench{rank // SIZE}", me, SIZE, capacity_bytes=2 * 4 * tokens * hidden)
    rng = np.random.default_rng(rank // SIZE)
    x = [rng.standard_normal((tokens, hidden), np.float32) for _ in range(SIZE)]
    ids = [rng.integers(0, VOCAB, tokens).astype(np.int32) for _ in range(SIZE)]
    slots = [np.zeros(tokens, np.int32) for _ in range(SIZE)]
    table_DV = rng.integers(0, EXPERTS, (1, VOCAB)).astype(np.int32)

    sources = list(zip(ids, slots, strict=True))

    def plan(part: slice) -> np.ndarray:
        """Returns [R, R]: the number of rows of the tokens in `part` from rank to rank."""
        sent = [send_order(ids_T[part], slots_T[part], table_DV, EXPERTS, SIZE)[0] for ids_T, slots_T in sources]
        return np.stack([counts_RG.sum(1) for counts_RG in sent]).astype(np.int32)

    length = tokens // CHUNKS
    chunk_slices = [slice(k * length, (k + 1) * length) for k in range(CHUNKS)]
    whole_RR = plan(slice(None))
    chunks_RR = [plan(part) for part in chunk_slices]
    capacity = int(whole_RR.sum(0).max())
    chunk_capacity = int(max(chunk_RR.sum(0).max() for chunk_RR in chunks_RR))
    rows_TH = x[me][np.argsort(table_DV[0][ids[me]], kind="stable")]
    counts = (Tensor(whole_RR[me]), Tensor(whole_RR[:, me].copy()))
    chunk_send_counts = Tensor(np.stack([chunk_RR[me] for chunk_RR in chunks_RR]))
    chunk_receive_counts = Tensor(np.stack([chunk_RR[:, me] for chunk_RR in chunks_RR]))
    inputs = tuple(Tensor(array) for array in (x[me], ids[me], slots[me], table_DV))

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
    def chunked(x_TH, ids_T, slots_T, table_DV, send_counts, receive_counts):
        rows, counts, positions, _, order = dispatch_all_to_all(
            x_TH,
            ids_T,
            slots_T,
            table_DV,
            EXPERTS,
            send_counts,
            receive_counts,
            chunk_capacity,
            group,
            first_order(),
            CHUNKS,
        )
        return rows, counts, positions, order

    copy = limits.copy(2 * 4 * tokens * hidden)
    rows_QH = Tensor(rows_TH)
    work: dict[str, Callable] = {
        "exchange": lambda: exchange(rows_QH, *counts)[0].asnumpy(),
        "fused": lambda: fused(*inputs, *counts)[0].asnumpy(),
        "separate": lambda: separate(*inputs, *counts)[0].asnumpy(),
        "chunked": lambda: [rows.asnumpy() for rows in chunked(*inputs, chunk_send_counts, chunk_receive_counts)[0]],
        "copy": copy or (lambda: None),
    }

    def expected(kind: str) -> list[np.ndarray]:
        parts = chunk_slices if kind == "chunked" else [slice(None)]
        size = chunk_capacity if kind == "chunked" else capacity
        received = []
        for part in parts:
            x_of_part = [x_TH[part] for x_TH in x]
            ids_of_part = [ids_T[part] for ids_T in ids]
            slots_of_part = [slots_T[part] for slots_T in slots]
            rows, _, _ = reference.dispatch_all_to_all(x_of_part, ids_of_part, slots_of_part, table_DV, EXPERTS, size)
            received.append(rows[me])
        return received

    checked = {"copy"}
    for line in sys.stdin:
        kind = line.strip()
        error = 0.0
        for _ in range(REPEATS):
            found = work[kind]()
        if kind not in checked:
            checked.add(kind)
            error = bench_case.largest_error(found if kind == "chunked" else [found], expected(kind))
        answers.write(f"done {error}\n")
        answers.flush()
    group.close()


if __name__ == "__main__":
    worker(*map(int, sys.argv[1:]))
