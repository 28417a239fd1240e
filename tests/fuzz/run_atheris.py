"""Fuzzes the readers of files from elsewhere, guided by coverage.

    pip install -e '.[fuzz]'
    python tests/fuzz/run_atheris.py                      all readers, one minute each
    python tests/fuzz/run_atheris.py --seconds 600 dense  one reader, ten minutes

Half of the inputs choose mutations of the real file (`mutations.py`), the other half replace it. Stops at the first
input for which a reader does anything but accept the file or refuse it with a MindPanguError within two seconds, and
prints the traceback. Each reader runs in a process of its own, because libFuzzer ends the process. Prints the number of
cases per minute.
"""

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parents[2]
SLOWEST_S = 2


def fuzz(name: str, seconds: int) -> None:
    """Fuzzes one reader until the time is up; never returns."""
    import atheris

    sys.path.insert(0, str(PROJECT))
    with atheris.instrument_imports(include=["mindpangu"], enable_loader_override=False):
        from tests.fuzz.readers import READERS, make_sandbox, read_forged
    from tests.fuzz.mutations import mutate

    reader = READERS[name]
    sandbox = Path(tempfile.mkdtemp(prefix="mindpangu_fuzz_")) / "sandbox"
    make_sandbox(sandbox)
    real = (sandbox / reader.file).read_bytes()

    def one_case(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        if provider.ConsumeBool():
            forged = mutate(real, reader.form, lambda n: provider.ConsumeIntInRange(0, n - 1))
        else:
            forged = provider.ConsumeBytes(provider.remaining_bytes())
        began = time.process_time()
        read_forged(reader, sandbox, forged)
        if time.process_time() - began > SLOWEST_S:
            raise TimeoutError(f"the reader of {name} took {time.process_time() - began:.1f} s")

    seeds = Path(tempfile.mkdtemp(prefix="mindpangu_seeds_"))
    (seeds / "real").write_bytes(b"\0" + real)  # an even first byte replaces the file
    for seed in range(32):
        (seeds / f"choices_{seed}").write_bytes(bytes((seed * 37 + i * 101) % 256 for i in range(64)) + b"\1")
    atheris.Setup([name, f"-max_total_time={seconds}", "-max_len=65536", "-verbosity=1", str(seeds)], one_case)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", help="Readers to fuzz (default: all).")
    parser.add_argument("--seconds", type=int, default=60, help="Time for each reader (default: %(default)s).")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        fuzz(options.readers[0], options.seconds)
    sys.path.insert(0, str(PROJECT))
    with contextlib.redirect_stderr(io.StringIO()):
        from tests.fuzz.readers import READERS
    failed = []
    for name in options.readers or READERS:
        command = [sys.executable, __file__, "--in-this-process", "--seconds", str(options.seconds), name]
        began = time.monotonic()
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        runs = [line for line in process.stderr.splitlines() if line.startswith("Done ")]
        cases = int(runs[-1].split()[1]) if runs else 0
        print(f"{name}: {cases:,} cases, {60 * cases / (time.monotonic() - began):,.0f} per minute", flush=True)
        if process.returncode or not cases:
            failed.append(name)
            print(process.stdout[-3000:], process.stderr[-5000:], sep="\n", flush=True)
    print(f"{len(failed)} readers failed{': ' if failed else ''}{', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
