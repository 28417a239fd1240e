"""Measures `mindpangu extract` against `cp -r` of the same files, one after the other, again and again.

    .venv/bin/python tools/bench_extract.py --checkpoint output/cpu_smoke --domains zh,code

Extraction links files where the disk allows; --copy forbids links, as between two disks. --verify hashes every file.
Both find the files in the page cache, as the first round reads them.
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
    parser.add_argument("--domains", required=True, help="the domains to take")
    parser.add_argument("--copy", action="store_true", help="without hard links")
    parser.add_argument("--verify", action="store_true", help="with the hash of every file compared")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    arguments = parser.parse_args()
    source = CheckpointReader(arguments.checkpoint).folder
    program = ["-c", _WITHOUT_LINKS] if arguments.copy else ["-m", "mindpangu"]
    verb = ["extract", "--checkpoint", str(source), "--domains", arguments.domains, *["--verify"] * arguments.verify]
    extract = [sys.executable, *program, *verb, "--out"]
    seconds: dict[str, list[float]] = {"extract": [], "cp -r": []}
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        scratch = Path(folder)
        for _ in range(1 + arguments.rounds):
            for name, words in (
                ("extract", [*extract, scratch / "out"]),
                ("cp -r", ["cp", "-r", "", scratch / "copy"]),
            ):
                if name == "cp -r":  # what was extracted, as files of their own
                    (words[2],) = (scratch / "out").glob("iteration_*")
                began = time.perf_counter()
                subprocess.run(words, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - began)
            size = sum(entry["bytes"] for entry in CheckpointReader(scratch / "out").files.values())
            shutil.rmtree(scratch / "out")
            shutil.rmtree(scratch / "copy")
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:>8} {size / 1e6:,.0f} MB in {median:.2f} s, {size / 1e9 / median:.2f} GB/s")
    print(f"extract has {medians['cp -r'] / medians['extract']:.2f} × the throughput of cp -r, start-up included")


if __name__ == "__main__":
    main()
