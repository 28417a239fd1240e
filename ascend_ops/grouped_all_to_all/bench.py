"""Shapes at which `python -m ascend_ops.bench` measures the exchange: 4 processes in 2 groups of 2, all at once.

As a program (`python -m ascend_ops.grouped_all_to_all.bench RANK TOKENS HIDDEN`) it is one of those processes: it reads
"what repeats" lines and answers each with a line when it is done.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ascend_ops.bench import runs
from ascend_ops.bench.case import Case, Prepared, Work

RANKS, SIZE = 4, 2  # processes, and how many of them form a group
EXPERTS, VOCAB, CHUNKS = 16, 8_000, 4
REPEATS = 5  # runs that the processes do by themselves before they answer
SHAPES = ((2048, 1024), (2048, 5120))
# direction → its backends; "separate" is rre_dispatch and then the exchange, "chunked" is fused in CHUNKS chunks
BACKENDS = {"exchange": ("exchange",), "dispatch": ("fused", "separate", "chunked")}
SHAPES = ((2048, 1024), (2048, 5120))
EXCHANGE = ("exchange",)
DISPATCHES = ("fused", "separate", "chunked")


def cases(quick: bool) -> Iterator[Case]:
    """The exchange of sorted rows by itself; then with the sorting, in three ways.

    Nothing without kernels: the composed form needs a job that MindSpore's launcher starts.
    """
    if "cpu" in runs.implementations("grouped_all_to_all"):
        for shape in SHAPES[:1] if quick else SHAPES:
            yield _case(*shape)


def _case(tokens, hidden):
    work = Work(moved_bytes=RANKS * 2 * 4 * tokens * hidden)
    return Case(
        op="grouped_all_to_all",
        shape=f"T{tokens} H{hidden} R2+2",
        limit="in each of the same 4 processes at once, T·H read and written by memcpy",
        work=dict.fromkeys(BACKENDS, work),
        prepare=lambda: _prepare(tokens, hidden),
    )


def _prepare(tokens, hidden):
    workers = Workers(tokens, hidden)
    functions = {
        direction: {
            **{"cpu" if kind == kinds[0] else kind: workers.run(kind) for kind in kinds},
            "limit": workers.run("copy"),
        }
        for direction, kinds in BACKENDS.items()
    }

    def expected(direction):
        return [np.ones(RANKS)]  # every process compares with the reference by itself, and answers 1 + its error

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

    def run(self, kind: str):
        """A function that runs it REPEATS times in all processes and returns their largest errors."""

        def run_in_all():
            for process in self._processes:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(f"{kind}\n")
                    process.stdin.flush()
            answers = [process.stdout.readline() for process in self._processes]
            for rank, answer in enumerate(answers):
                if not answer.startswith("done "):
                    self.close(failed=True)
                    raise RuntimeError(f"process {rank} of the exchange failed: {self._last_words[rank]}")
            return [np.array([1 + float(answer.split()[1]) for answer in answers])]

        return run_in_all

    def close(self, failed: bool = False) -> None:
        """Ends the processes; they leave when their input ends."""
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            if failed:
                process.kill()
            process.wait()
            process.stdout.close()
        self._last_words = [log.read_text(errors="replace")[-400:] for log in self._logs]
        self._folder.cleanup()


def worker(rank: int, tokens: int, hidden: int) -> None:
    """One process: rank % 2 of group rank // 2."""
    import mindspore as ms
    from mindspore import Tensor

    from ascend_ops.bench import case as bench_case
    from ascend_ops.bench import limits
    from ascend_ops.grouped_all_to_all import dispatch_all_to_all, first_order, grouped_all_to_all, join, reference
    from ascend_ops.rre_dispatch import rre_dispatch
    from ascend_ops.rre_dispatch.reference import send_order

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    me = rank % SIZE
    group = join(f"bench{rank // SIZE}", me, SIZE, capacity_bytes=2 * 4 * tokens * hidden)
    rng = np.random.default_rng(rank // SIZE)
    x = [rng.standard_normal((tokens, hidden), np.float32) for _ in range(SIZE)]
    ids = [rng.integers(0, VOCAB, tokens).astype(np.int32) for _ in range(SIZE)]
    slots = [np.zeros(tokens, np.int32) for _ in range(SIZE)]
    table_DV = rng.integers(0, EXPERTS, (1, VOCAB)).astype(np.int32)

    sources = list(zip(ids, slots, strict=True))

    def plan(part):
        """[R, R]: rows from rank to rank of the tokens in `part`."""
        sent = [send_order(i[part], s[part], table_DV, EXPERTS, SIZE)[0] for i, s in sources]
        return np.stack([counts_RG.sum(1) for counts_RG in sent]).astype(np.int32)

    length = tokens // CHUNKS
    whole, chunks = plan(slice(None)), [plan(slice(k * length, (k + 1) * length)) for k in range(CHUNKS)]
    capacity, chunk_capacity = int(whole.sum(0).max()), int(max(chunk.sum(0).max() for chunk in chunks))
    rows_TH = x[me][np.argsort(table_DV[0][ids[me]], kind="stable")]
    counts = Tensor(whole[me]), Tensor(whole[:, me].copy())
    chunk_counts = Tensor(np.stack([c[me] for c in chunks])), Tensor(np.stack([c[:, me] for c in chunks]))
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
    def chunked(x_TH, ids_T, slots_T, table_DV, send_KR, receive_KR):
        rows, counts, positions, _, order = dispatch_all_to_all(
            x_TH, ids_T, slots_T, table_DV, EXPERTS, send_KR, receive_KR, chunk_capacity, group, first_order(), CHUNKS
        )
        return rows, counts, positions, order

    copy = limits.copy(2 * 4 * tokens * hidden)
    rows_QH = Tensor(rows_TH)
    work = {
        "exchange": lambda: exchange(rows_QH, *counts)[0].asnumpy(),
        "fused": lambda: fused(*inputs, *counts)[0].asnumpy(),
        "separate": lambda: separate(*inputs, *counts)[0].asnumpy(),
        "chunked": lambda: [rows.asnumpy() for rows in chunked(*inputs, *chunk_counts)[0]],
        "copy": copy,
    }

    def expected(kind):
        parts = [slice(k * length, (k + 1) * length) for k in range(CHUNKS)] if kind == "chunked" else [slice(None)]
        size = chunk_capacity if kind == "chunked" else capacity
        return [
            reference.dispatch_all_to_all(
                [rows[part] for rows in x], [i[part] for i in ids], [s[part] for s in slots], table_DV, EXPERTS, size
            )[0][me]
            for part in parts
        ]

    checked = {"copy"}
    for line in sys.stdin:
        kind, error = line.strip(), 0.0
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
