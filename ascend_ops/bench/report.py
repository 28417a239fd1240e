"""Records of the benchmark and their table."""

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from ascend_ops.bench import limits
from ascend_ops.bench.case import Case


@dataclass(frozen=True)
class Record:
    """Result of one backend of one case in one direction. A field is None if it was not measured or does not apply.

    vs_composed is the time of composed divided by this backend's, and so on: above 1 this backend is faster. A
    vs_limit of 1 is as fast as the limit. Backend "limit" is the limit itself.
    """

    op: str
    shape: str
    dtype: str
    backend: str
    direction: str
    us: float
    gbytes_per_s: float | None
    gflop_per_s: float | None
    vs_composed: float | None
    vs_torch: float | None
    vs_limit: float | None
    max_error: float | None

    def as_dict(self) -> dict:
        """Returns the record as a JSON object."""
        return asdict(self)


def records_of(case: Case, direction: str, times: dict[str, float], errors: dict[str, float]) -> list[Record]:
    """Returns one record per backend; `times` are in microseconds."""

    def ratio(other: str, backend: str) -> float | None:
        return times[other] / times[backend] if other in times else None

    work = case.work[direction]
    return [
        Record(
            case.op,
            case.shape,
            case.dtype,
            backend,
            direction,
            us,
            work.moved_bytes / us / 1e3 if work.moved_bytes else None,
            work.flops / us / 1e3 if work.flops else None,
            ratio("composed", backend),
            ratio("torch", backend),
            ratio("limit", backend),
            errors.get(backend),
        )
        for backend, us in times.items()
    ]


HEADER = (
    f"{'shape':<28} {'direction':<16} {'backend':<9} {'time':>9} {'rate':>13}"
    f" {'×composed':>9} {'×torch':>7} {'×limit':>7} {'error':>8}"
)


def line(record: Record, first: bool) -> str:
    """Formats a line of the table; only the first line of a shape and direction shows them."""
    shape = record.shape if first else ""
    direction = record.direction if first else ""
    ratios = {"composed": record.vs_composed, "torch": record.vs_torch, "limit": record.vs_limit}
    shown = ["–" if ratio is None or name == record.backend else f"{ratio:.2f}" for name, ratio in ratios.items()]
    error = "–" if record.max_error is None else "exact" if record.max_error == 0 else f"{record.max_error:.0e}"
    return (
        f"{shape:<28} {direction:<16} {record.backend:<9} {_time(record.us):>9} {_rate(record):>13}"
        f" {shown[0]:>9} {shown[1]:>7} {shown[2]:>7} {error:>8}"
    )


def _time(us: float) -> str:
    return f"{us:.0f} µs" if us < 1e4 else f"{us / 1e3:.1f} ms"


def _rate(record: Record) -> str:
    if record.gflop_per_s is not None:
        return f"{record.gflop_per_s:.0f} GFLOP/s"
    return "–" if record.gbytes_per_s is None else f"{record.gbytes_per_s:.1f} GB/s"


def last_level_cache_bytes() -> int:
    """Returns the size of the first processor's last-level cache; 0 if the system does not report it."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text("ascii").strip()
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:])
        sizes.append(int(text[:-1]) * unit if unit else int(text))
    return max(sizes)


def machine() -> str:
    """Describes in one line the machine that the times were measured on."""
    import mindspore

    from ascend_ops.bench.runs import torch_or_none

    torch = torch_or_none()
    try:
        compiler = subprocess.run(
            [os.environ.get("CXX") or "g++", "-dumpfullversion"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        ).stdout.strip()
    except OSError:
        compiler = ""
    return ", ".join(
        (
            f"{platform.machine()}, {os.cpu_count()} cores ({limits.num_threads()} threads)",
            f"last-level cache {last_level_cache_bytes() >> 20} MiB",
            f"g++ {compiler}" if compiler else "no C++ compiler",
            f"MindSpore {mindspore.__version__}",
            f"torch {torch.__version__}" if torch else "no torch",
            f"Python {platform.python_version()}",
        )
    )
