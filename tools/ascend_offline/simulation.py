"""The environment in which MindSpore believes to be one rank on Ascend NPUs, and compiles for them."""

import os
import subprocess
import sys
from pathlib import Path

from ascend_offline import cann_stub, operator_package


def prepare(folder: Path, ranks: int, chip: str = "ascend910", headers: Path | None = None) -> dict[str, str]:
    """Stubs of CANN's libraries, and with ACL's headers an operator package, in a folder; the environment variables of
    a process that is to find them. Raises cann_stub.StubError where there is no plugin or no compiler."""
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
    """The last line that the command prints. Raises RuntimeError with the end of its error output if it fails."""
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout.splitlines()[-1]


def join_simulated_ranks() -> None:
    """Sets MindSpore up in such a process. Raises RuntimeError outside of one."""
    import mindspore as ms
    from mindspore import communication

    ms.set_device("Ascend")
    communication.GlobalComm.CHECK_ENVS = False
    communication.init()
