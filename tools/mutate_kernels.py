"""Breaks the AscendC kernels in every way that their style invites, and shows that the emulator notices each.

    python tools/mutate_kernels.py [--only NAME …] [--list]

Two kinds: every statement that orders, frees or waits is left out, one at a time, as the sources have them; and
bounds, tiles, prefixes and formulas are made wrong, by the list below. A mutant that no rule and no reference rejects is printed
as SURVIVED, and the exit code is 1.
"""

import argparse
import multiprocessing
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ascend_ops import emulator
from ascend_ops.emulator.build import OPERATORS
from ascend_ops.emulator.cases import Shape, WrongResult, check

TIMEOUT_S = 120
SHARED = "ascend/rre_kernel.h"


@dataclass(frozen=True)
class Mutant:
    """One change of one source.

    Attributes:
        name: what is broken.
        file: below ascend_ops.
        position: where in the file.
        old, new: text.
        kernel: that is run; chip: that it is run on.
        tight: run on rows that fill the unified buffer to its last granule.
    """

    name: str
    file: str
    position: int
    old: str
    new: str
    kernel: str
    chip: str = "ascend910"
    tight: bool = False


# where the kernels are, and which of them shows what was broken
KERNEL_OF = {
    "rre_dispatch/ascend/op_kernel/rre_dispatch.h": "rre_dispatch",
    "rre_dispatch/ascend/op_kernel/rre_move_rows.h": "rre_scatter_rows",
    "rre_combine/ascend/op_kernel/rre_combine.h": "rre_combine",
    "rre_regroup/ascend/op_kernel/rre_regroup.h": "rre_regroup",
}
MOVE, DISPATCH, COMBINE, REGROUP = "rre_scatter_rows", "rre_dispatch", "rre_combine", "rre_regroup"
HEADER_OF = {kernel: file for file, kernel in KERNEL_OF.items()}
DISPATCH_HOST = "rre_dispatch/ascend/op_host/rre_dispatch.cpp"
MOVE_HOST = "rre_dispatch/ascend/op_host/rre_move_rows.cpp"
COMBINE_HOST = "rre_combine/ascend/op_host/rre_combine.cpp"
REGROUP_HOST = "rre_regroup/ascend/op_host/rre_regroup.cpp"
HOST = "ascend/rre_host.h"

# statements that are left out, wherever they stand
STATEMENTS = re.compile(
    r"^ *(Order<HardEvent::\w+>\(\);|PipeBarrier<PIPE_V>\(\);|sync_\(\);|\w+\.EnQue\(\w+\);|\w+\.FreeTensor\(\w+\);"
    r"|SetFlag<kEvent>\(id\);|WaitFlag<kEvent>\(id\);)",
    re.MULTILINE,
)

# (what, kernel that is run, file, text, what it becomes)
# ruff: noqa: E501
CHANGES = (
    ("share not in granules", MOVE, None, "share_ = ShareOfCore(padded, kInts)", "share_ = ShareOfCore(padded, 1)"),
    ("share of all cores", MOVE, None, "share_ = ShareOfCore(padded, kInts)", "share_ = {0, padded}"),
    ("no share for the last step", DISPATCH, SHARED, "begin + each + (core < more ? 1 : 0)", "begin + each"),
    ("padding is moved too", MOVE, None, "real = Min(count, tokens_ - first)", "real = count"),
    ("gather instead of scatter", MOVE, None, "if (scatter)", "if (!scatter)"),
    ("forward instead of back", "rre_regroup_back", HEADER_OF[REGROUP], "if (back)", "if (!back)"),
    ("tile one row too wide", MOVE, SHARED, "batch * tile_words * sizeof(int32_t)", "tile_words * sizeof(int32_t)"),
    ("buffers larger than the chip's", MOVE, SHARED, "queue_, 2, batch", "queue_, 8, batch"),
    ("last column tile whole", MOVE, SHARED, "width = Min(tile_words_, row_words_ - column)", "width = tile_words_"),
    ("column of a row forgotten", MOVE, SHARED, "row * row_words_ + column", "row * row_words_"),
    ("short output", MOVE, None, "moved), words)", "moved), words - 8)"),
    ("too long an output", MOVE, None, "moved), words)", "moved), words + 8)"),
    ("odd DMA", MOVE, None, "DataCopy(places, positions_[first], count)", "DataCopy(places, positions_[first], real)"),
    ("sum over cores one core too far", DISPATCH, None, "from[kLead - kInts], out", "from[kLead], out"),
    ("running sum stops early", DISPATCH, None, "shift < cores_; shift *= 2", "shift < cores_; shift *= 4"),
    ("total of the last core but one", DISPATCH, None, "kLead + size - kInts", "kLead + size - 2 * kInts"),
    ("zeros before the slice forgotten", DISPATCH, None, "Duplicate(from, 0, kLead);", ""),
    ("slices of other cores too", DISPATCH, None, "slice = core_; slice", "slice = 0; slice"),
    ("start of the next group", DISPATCH, None, "next.GetValue(kInts + group) + start);\n      start += totals.GetValue(group);", "next.GetValue(kInts + group) + (start += totals.GetValue(group)));"),
    ("place not counted on", DISPATCH, None, "next.SetValue(group, place + 1)", "next.SetValue(group, place)"),
    ("histogram not cleared", DISPATCH, None, "Duplicate(histogram, 0, columns_);", ""),
    ("histogram row of another core", DISPATCH, None, "DataCopy(histograms_[static_cast<uint64_t>(core_) * columns_], histogram", "DataCopy(histograms_[0], histogram"),
    ("granule of another entry", DISPATCH, None, "table_[entry / kEntries * kEntries]", "table_[entry / kEntries]"),
    ("ids not kept inside the table", DISPATCH, None, "Min(given_token, vocab_size_ - 1)", "given_token"),
    ("experts not kept inside the group", DISPATCH, None, "expert = Min(named, experts_ - 1)", "expert = named"),
    ("slot before rank", DISPATCH, None, "(expert / experts_of_rank_ * slots_ + slot) * experts_of_rank_ + expert % experts_of_rank_", "slot * experts_ + expert"),
    ("too small a workspace", DISPATCH, DISPATCH_HOST, "cores * columns * sizeof(int32_t)", "columns * sizeof(int32_t)"),
    ("barrier not zeroed", DISPATCH, DISPATCH_HOST, ".InitValue(0)", ""),
    ("no atomic, so nothing is zeroed", DISPATCH, DISPATCH_HOST, "SetNeedAtomic(true)", "SetNeedAtomic(false)"),
    ("more cores than the chip has", DISPATCH, DISPATCH_HOST, "context->SetBlockDim(cores)", "context->SetBlockDim(64)"),
    ("cores do not start together", DISPATCH, DISPATCH_HOST, "context->SetScheduleMode(1)", "context->SetScheduleMode(0)"),
    ("hardware SyncAll everywhere", DISPATCH, SHARED, "kHardwareSync = false", "kHardwareSync = true"),
    ("residual of the row before", COMBINE, None, "residual_[Element(first + row, column)]", "residual_[Element(first, column)]"),
    ("rows over the residual", COMBINE, None, "in[tile_ + i * width]", "in[i * width]"),
    ("residual added to itself", COMBINE, None, "Cast(right, in[tile_],", "Cast(right, in,"),
    ("rounding of other chips", COMBINE, None, "kRound = RoundMode::CAST_NONE;\n#else", "kRound = RoundMode::CAST_RINT;\n#else"),
    ("float buffer of one row", COMBINE, None, "2 * tile_ * sizeof(float)", "tile_ * sizeof(float)"),
    ("more copies than the tiling knows", COMBINE, None, "pipe_.InitBuffer(out_, 2,", "pipe_.InitBuffer(out_, 4,"),
    ("block starts one block too late", REGROUP, None, "starts.SetValue(block, static_cast<int32_t>(start));\n      start += Rows(counts, block, start);", "start += Rows(counts, block, start);\n      starts.SetValue(block, static_cast<int32_t>(start));"),
    ("blocks in their old order", REGROUP, None, "block = a * inner_ + b, end", "block = b * outer_ + a, end"),
    ("turn of the first core", REGROUP, None, "mine = turn_ * static_cast<uint32_t>(GetBlockIdx())", "mine = 0"),
    ("turns overlap", REGROUP, None, "stride = turn_ *", "stride = (turn_ - 1) *"),
    ("turn does not go on", REGROUP, None, "if (mine + turn_ > end) break;", ""),
    ("padding not cleared", REGROUP, None, "Clear(total + padding.begin, total + padding.end);", ""),
    ("too few zeros before the slices", DISPATCH, None, "kMostShift = 32", "kMostShift = 4"),
    ("clears one row too many", REGROUP, None, "mover_.Word(end, 0)", "mover_.Word(end + 1, 0)"),
)  # fmt: skip

# what the host forgets when it divides the unified buffer
FORGOTTEN = (
    ("tile of other tokens than the kernel's", MOVE, SHARED, "kTileTokens = 256", "kTileTokens = 512"),
    ("library's part", MOVE, HOST, "ub_bytes -= kUbOfLibrary;", ""),
    ("places of a tile", MOVE, MOVE_HOST, "platform.ub_bytes - rre_host::kTileTokens * sizeof(int32_t)", "platform.ub_bytes"),
    ("places of a tile of combine", COMBINE, COMBINE_HOST, "platform.ub_bytes - scratch", "platform.ub_bytes"),
    ("copies as float", COMBINE, COMBINE_HOST, "? 6 : 10", "? 6 : 6"),
    ("where blocks start", REGROUP, REGROUP_HOST, "2 * blocks * sizeof(int32_t)", "blocks * sizeof(int32_t)"),
    ("the zeros' batch", REGROUP, REGROUP_HOST, "platform.ub_bytes - scratch, 3", "platform.ub_bytes - scratch, 2"),
    ("histogram", DISPATCH, DISPATCH_HOST, "2 * columns * sizeof(int32_t)", "columns * sizeof(int32_t)"),
    ("slices", DISPATCH, DISPATCH_HOST, "2 * (kMostShift + cores)", "(kMostShift + cores)"),
    ("counters of SyncAll", DISPATCH, DISPATCH_HOST, "cores * rre_host::kGranule +", ""),
    ("table entries", DISPATCH, DISPATCH_HOST, "(3 * sizeof(int32_t) + rre_host::kGranule)", "3 * sizeof(int32_t)"),
    ("one array of ids", DISPATCH, DISPATCH_HOST, "3 * sizeof(int32_t)", "2 * sizeof(int32_t)"),
)  # fmt: skip


def mutants() -> Iterator[Mutant]:
    """All of them, in the order of the sources."""
    for file in (*KERNEL_OF, SHARED):
        text = (OPERATORS / file).read_text()
        for found in STATEMENTS.finditer(text):
            line = text.count("\n", 0, found.start(1)) + 1
            name = f"{Path(file).name}:{line} without {found.group(1)}"
            yield Mutant(name, file, found.start(1), found.group(1), ";", KERNEL_OF.get(file, MOVE))
    for changes, kind, tight in ((CHANGES, "", False), (FORGOTTEN, "forgotten on the host: ", True)):
        for name, kernel, file, old, new in changes:
            file = file or HEADER_OF[kernel]
            text = (OPERATORS / file).read_text()
            if old not in text:
                raise SystemExit(f"mutate_kernels: {name}: {file} has no {old!r} any more")
            yield Mutant(kind + name, file, text.index(old), old, new, kernel, tight=tight)


def verdict(mutant: Mutant, folder: Path) -> str:
    """The rule that rejects it; "" for none."""
    sources = folder / "ascend_ops"
    for path in ("ascend", *(f"{operator}/ascend" for operator in {*emulator.KERNELS.values()})):
        shutil.copytree(OPERATORS / path, sources / path, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    text = (OPERATORS / mutant.file).read_text()
    end = mutant.position + len(mutant.old)
    (sources / mutant.file).write_text(text[: mutant.position] + mutant.new + text[end:])
    try:
        operator = emulator.compile_operator(mutant.kernel, mutant.chip, sources=sources, folder=folder)
        for seed, shape in enumerate(TIGHT if mutant.tight else SHAPES):
            check(operator, shape, "float16", seed)
    except emulator.EmulatorError as error:
        return error.rule
    except WrongResult:
        return "result"
    return ""


# many tiles and batches a core; more cores than granules; a row that is cut into columns; ids of every kind
SHAPES = (
    Shape(tokens=1500, hidden=64, experts=8, slots=3, ranks=4, cores=2),
    Shape(tokens=203, hidden=48, experts=6, slots=2, ranks=2, skew=0.5, cores=7),
    Shape(tokens=20, hidden=80_016, experts=2, cores=3),
    Shape(tokens=700, hidden=32, experts=4, slots=2),
)
# some of these rows fill the buffers to the last granules
TIGHT = tuple(Shape(tokens=250, hidden=hidden, experts=64, slots=8) for hidden in range(3_200, 12_800, 48))


def run(mutant: Mutant) -> str:
    """`verdict` in a process of its own, which may hang or crash."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=lambda: sender.send(verdict(mutant, Path(folder))))
        process.start()
        sender.close()
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            return "hangs"
        return receiver.recv() if receiver.poll() else f"crashes ({process.exitcode})"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mutants whose name holds one of these")
    parser.add_argument("--list", action="store_true", help="print their names")
    arguments = parser.parse_args()
    chosen = [each for each in mutants() if not arguments.only or any(part in each.name for part in arguments.only)]
    if arguments.list:
        print("\n".join(each.name for each in chosen))
        return
    survivors = 0
    with ThreadPoolExecutor(2) as pool:
        for mutant, rule in zip(chosen, pool.map(run, chosen), strict=True):
            rejected = rule and rule != "compile" and not rule.startswith(("hangs", "crashes"))
            survivors += not rejected
            print(f"{mutant.name:75} {rule if rejected else f'SURVIVED {rule}'}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} rejected")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
