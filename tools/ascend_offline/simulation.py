"""Runs MindSpore as one simulated rank of a cluster of Ascend NPUs, for which it can compile."""

import os
import subprocess
import sys
from pathlib import Path

from ascend_offline import cann_stub, operator_package


def prepare(folder: Path, ranks: int, chip: str = "ascend910", headers: Path | None = None) -> dict[str, str]:
    """Builds stubs of CANN's libraries in a folder and, given ACL's headers, writes an operator package there.

    Returns:
        The environment variables for a process that uses them.

    Raises:
        cann_stub.StubError: this MindSpore has no Ascend plugin, or there is no compiler.
    """
    libraries = folder / "stub"
    cann_stub.build(libraries)
    toolkit = folder / "toolkit"
    (toolkit / "opp" / "built-in" / "op_impl" / "ai_core" / "tbe" / "config").mkdir(parents=True)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries),
        "MS_SIMULATION_LEVEL": "0",
        "RANK_SIZE": str(ranks),
        "RANK_ID": "0",
        "GLOG_v": "3",
        "ASCEND_OPP_PATH": str(toolkit / "opp"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    environment.pop("MINDPANGU_OPS", None)
    environment.pop("ASCEND_CUSTOM_OPP_PATH", None)
    if headers is not None:
        (toolkit / "include").symlink_to(headers.resolve())
        operator_package.write(folder / "package", chip)
        environment["ASCEND_CUSTOM_OPP_PATH"] = str(folder / "package")
    return environment


def run_inside(command: list[str], environment: dict[str, str], folder: Path) -> str:
    """Runs a Python command in a simulated rank and returns the last line that it prints.

    Raises:
        RuntimeError: the command failed; the message is the end of its error output.
    """
    process = subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise RuntimeError(process.stderr[-3000:])
    return process.stdout.splitlines()[-1]


def join_simulated_ranks() -> None:
    """Initializes MindSpore's communication in a simulated rank.

    Raises:
        RuntimeError: this process is not a simulated rank.
    """
    import mindspore as ms
    from mindspore import communication

    ms.set_device("Ascend")
    communication.GlobalComm.CHECK_ENVS = False
    communication.init()
