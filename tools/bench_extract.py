"""Compares the speed of `mindpangu extract` with `cp -r` of the same files, in alternating rounds.

    .venv/bin/python tools/bench_extract.py --checkpoint output/cpu_smoke --domains zh,code

Extraction uses hard links if the file system allows; --copy forbids them, as between two disks. --verify hashes every
file. The files are in the page cache for both, because an unmeasured first round reads them.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mindpangu.checkpoint import CheckpointReader
from mindpangu.cli.programs import run_program

_WITHOUT_LINKS = (
    "import os, sys\n"
    "def link(*_): raise OSError('links are forbidden')\n"
    "os.link = link\n"
    "from mindpangu.cli.main import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint or a run folder")
    parser.add_argument("--domains", required=True, help="domains to extract")
    parser.add_argument("--copy", action="store_true", help="copy files instead of linking them")
    parser.add_argument("--verify", action="store_true", help="compare the hash of every file")
    parser.add_argument("--rounds", type=int, default=7, help="number of measured rounds (default: %(default)s)")
    arguments = parser.parse_args()

    source = CheckpointReader(arguments.checkpoint).folder
    program = ["-c", _WITHOUT_LINKS] if arguments.copy else ["-m", "mindpangu"]
    verb = ["extract", "--checkpoint", str(source), "--domains", arguments.domains, *["--verify"] * arguments.verify]
    extract = [sys.executable, *program, *verb, "--out"]

    seconds: dict[str, list[float]] = {"extract": [], "cp -r": []}
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        scratch = Path(folder)
        for _ in range(1 + arguments.rounds):
            seconds["extract"].append(time_command([*extract, scratch / "out"]))
            (extracted,) = (scratch / "out").glob("iteration_*")
            seconds["cp -r"].append(time_command(["cp", "-r", extracted, scratch / "copy"]))
            size = sum(int(entry["bytes"]) for entry in CheckpointReader(scratch / "out").files.values())
            shutil.rmtree(scratch / "out")
            shutil.rmtree(scratch / "copy")

    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:>8} {size / 1e6:,.0f} MB in {median:.2f} s, {size / 1e9 / median:.2f} GB/s")
    print(f"extract has {medians['cp -r'] / medians['extract']:.2f} × the throughput of cp -r, including its start-up")


def time_command(command: list[str | Path]) -> float:
    """Runs a command and returns the seconds it took."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    run_program(main)
