"""Runs the scripts of recipes/ on a machine whose programs are stand-ins on PATH: nothing is installed or trained.

The stand-in for Python answers the verbs of the command line and logs them. msrun and npu-smi have stand-ins too.
`.ci/run` tests real installations on a clean clone.
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

# logs its arguments to "python", and the verbs of mindpangu to "verbs"
PYTHON = f"""#!/usr/bin/env bash
echo "$*" >> "$LOGS/python"
case "$1 $2" in
    "-c "*"import mindspore"*) exit 0 ;;
    "-c "*) exec {sys.executable} "$@" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo "Collecting mindspore"; sleep "${{PIP_SECONDS:-0}}"; exit "${{PIP_EXIT:-0}}" ;;
    "-m mindpangu")
        shift 2
        if [ "$1" = config ]; then
            case "${{*: -1}}" in
                context.device_target) echo "${{DEVICE:-CPU}}" ;;
                run_folder) echo "$RUN_FOLDER" ;;
                training.restarts) echo "${{RESTARTS:-0}}" ;;
            esac
            exit 0
        fi
        echo "$*" >> "$LOGS/verbs"
        if [ "$1" = "${{SLOW_VERB:-}}" ]; then exec {sys.executable} "$SLOW_PROGRAM"; fi
        if [ "$1" = "${{BAD_VERB:-}}" ]; then exit 7; fi ;;
esac
"""
# the verb SLOW_VERB: notes its process id, and the signals that it gets; "saves" after the first one; has a child
SLOW_PROGRAM = """
import os, signal, subprocess, sys, time

def note(name, text):
    with open(os.path.join(os.environ["LOGS"], name), "a") as log:
        print(text, file=log)

def stop(number, frame):
    received.append(number)
    note("signals", signal.Signals(number).name)
    if len(received) == 2 and "STUBBORN" not in os.environ:
        sys.exit(128 + number)

received = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, stop)
note("child", subprocess.Popen(["sleep", "60"]).pid)
note("started", os.getpid())
end = time.monotonic() + float(os.environ.get("SLOW_SECONDS", 60))
while time.monotonic() < end and (not received or "STUBBORN" in os.environ):
    time.sleep(0.02)
time.sleep(float(os.environ.get("SAVING_SECONDS", 0.3)))
note("saved", "checkpoint")
sys.exit(128 + received[0] if received and "MS_ROLE" not in os.environ else 0)
"""
# logs its last arguments to "msrun", those of all its runs to "msruns", and what its workers would inherit
MSRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$LOGS/msrun"
echo "$*" >> "$LOGS/msruns"
if [ -n "${MSRUN_STEPS:-}" ]; then echo "{}" >> "$MSRUN_STEPS/metrics.jsonl"; fi
if [ -n "${MSRUN_REPEATS:-}" ]; then (cd "$MSRUN_REPEATS" && rm -f metrics.jsonl && echo "{}" > metrics.jsonl); fi
if [ -n "${MSRUN_STOPPED:-}" ]; then echo 143 > "$MSRUN_STOPPED/.stopped"; fi
if [ -n "${MSRUN_SAYS:-}" ]; then echo "$MSRUN_SAYS" >&2; fi
if [ -n "${MSRUN_STARTS_SLOWLY:-}" ]; then echo $$ > "$LOGS/started"; sleep 60; fi
env | grep -E '^(HCCL|ASCEND|GLOG|OMP)' > "$LOGS/env"
command -v python > "$LOGS/worker"
if [ -n "${SLOW_RANK:-}" ]; then exec "$SLOW_RANK" -c '
import os, subprocess, sys
subprocess.Popen(["sleep", "60"], env=os.environ | {"MS_ROLE": "MS_SCHED"})
rank = [sys.executable, os.environ["SLOW_PROGRAM"]]
sys.exit(subprocess.call(rank, env=os.environ | {"MS_ROLE": "MS_WORKER"}, start_new_session=True))'; fi
exit "${MSRUN_EXIT:-0}"
"""
_HAS_ASCEND = Path("/usr/local/Ascend").exists() or any(Path("/dev").glob("davinci[0-9]*"))
without_ascend = pytest.mark.skipif(_HAS_ASCEND, reason="this host has NPUs or CANN")


class Machine:
    """A machine whose programs are stand-ins. `run` starts the main job on it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.logs = folder / "logs"
        self.cann = folder / "cann"
        for path in (self.bin, self.logs, self.cann):
            path.mkdir()
        self.add_program("python", PYTHON)
        self.add_program("python3", PYTHON)
        self.add_program("slow.py", SLOW_PROGRAM)
        self.variables = {
            "MINDPANGU_PYTHON": str(self.bin / "python"),
            "SLOW_PROGRAM": str(self.bin / "slow.py"),
            "RUN_FOLDER": str(folder / "run"),
        }

    def add_program(self, name: str, text: str = "#!/bin/sh\n") -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def add_npus(self) -> None:
        """Adds npu-smi, msrun, and CANN."""
        self.add_program("npu-smi")
        self.add_program("msrun", MSRUN)
        self.variables |= {"ASCEND_HOME_PATH": str(self.cann), "DEVICE": "Ascend"}

    def environment(self, **variables: str) -> dict[str, str]:
        path = f"{self.bin}:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.folder), "LOGS": str(self.logs), **self.variables, **variables}

    def start_job(self, *arguments: str, ignored: int | None = None, **variables: str) -> subprocess.Popen:
        """Starts the main job in a new session, and returns when its slow stage has begun.

        Args:
            ignored: a signal that is ignored at the start, as nohup ignores SIGHUP.
        """

        def set_signals() -> None:
            # a shell that runs the tests in the background makes them ignore Ctrl-C
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if ignored is not None:
                signal.signal(ignored, signal.SIG_IGN)

        command = ["bash", str(PROJECT / "recipes/run_910.sh"), *arguments]
        with (self.logs / "output").open("w") as output:
            job = subprocess.Popen(
                command,
                env=self.environment(**variables),
                start_new_session=True,
                stdout=output,
                stderr=output,
                preexec_fn=set_signals,
            )
        self.wait_for_stage(job)
        return job

    def wait_for_stage(self, job: subprocess.Popen) -> None:
        """Waits until the slow stage has begun."""
        deadline = time.monotonic() + 30
        while not self.log_lines("started"):
            assert job.poll() is None, (self.logs / "output").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def orphans(self) -> list[str]:
        """Returns the process ids of the slow stage and its child that still run."""
        pids = [*self.log_lines("started"), *self.log_lines("child")]
        return [pid for pid in pids if _is_running(pid)]

    def run(self, *arguments: str, cwd: Path = PROJECT, **variables: str) -> subprocess.CompletedProcess:
        command = ["bash", str(PROJECT / "recipes/run_910.sh"), *arguments]
        environment = self.environment(**variables)
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)

    def log_lines(self, name: str) -> list[str]:
        path = self.logs / name
        return path.read_text().splitlines() if path.exists() else []

    def msrun_options(self) -> dict[str, str]:
        lines = self.log_lines("msrun")
        options = [line.removeprefix("--") for line in lines[: lines.index("python")]]
        return dict(option.split("=", 1) for option in options)


def _is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class Clone(Machine):
    """A machine with a copy of the project's scripts and no MINDPANGU_PYTHON, so that the scripts build `.venv`."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.variables = {"PYENV_ROOT": str(folder)}
        self.project = folder / "project"
        (self.project / "recipes").mkdir(parents=True)
        for name in ("recipes/environment.sh", "pyproject.toml", "setup.py"):
            shutil.copy(PROJECT / name, self.project / name)

    def start(self, extra: str = "", before: str = "", **variables: str) -> subprocess.Popen:
        script = f"set -euo pipefail; source recipes/environment.sh; {before} prepare_environment {extra}; echo $PYTHON"
        return subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.project,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def prepare(self, *arguments: str, **variables: str) -> tuple[int, str]:
        process = self.start(*arguments, **variables)
        output = process.communicate(timeout=60)[0]
        return process.returncode, output

    def calls(self, module: str) -> int:
        """Returns the number of `python -m module` calls."""
        return sum(line.startswith(f"-m {module} ") for line in self.log_lines("python"))
