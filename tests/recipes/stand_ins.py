"""Runs the scripts of recipes/ on a machine whose programs are stand-ins on PATH: nothing is installed or trained.

The stand-in for Python answers the verbs of the command line and logs them. msrun and npu-smi have stand-ins too.
`.ci/run` tests real installations on a clean clone.
"""

import shutil
import subprocess
import sys
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
                run_folder) echo "${{RUN_FOLDER:-results/trial}}" ;;
                training.restarts) echo "${{RESTARTS:-0}}" ;;
            esac
            exit 0
        fi
        echo "$*" >> "$LOGS/verbs"
        if [ "$1" = "${{SLOW_VERB:-}}" ]; then trap "exit 0" INT; touch "$LOGS/started"; sleep 5 & wait; fi
        if [ "$1" = "${{BAD_VERB:-}}" ]; then exit 7; fi ;;
esac
"""
# logs its last arguments to "msrun", those of all its runs to "msruns", and what its workers would inherit
MSRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$LOGS/msrun"
echo "$*" >> "$LOGS/msruns"
if [ -n "${MSRUN_STEPS:-}" ]; then echo "{}" >> "$MSRUN_STEPS/metrics.jsonl"; fi
if [ -n "${MSRUN_STOPPED:-}" ]; then echo 143 > "$MSRUN_STOPPED/.stopped"; fi
env | grep -E '^(HCCL|ASCEND|GLOG|OMP)' > "$LOGS/env"
command -v python > "$LOGS/worker"
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
        self.variables = {"MINDPANGU_PYTHON": str(self.bin / "python")}

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

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        command = ["bash", str(PROJECT / "recipes/run_910.sh"), *arguments]
        return subprocess.run(command, env=self.environment(**variables), capture_output=True, text=True, timeout=60)

    def log_lines(self, name: str) -> list[str]:
        path = self.logs / name
        return path.read_text().splitlines() if path.exists() else []

    def msrun_options(self) -> dict[str, str]:
        options = [line.removeprefix("--") for line in self.log_lines("msrun") if "=" in line]
        return dict(option.split("=", 1) for option in options)


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
