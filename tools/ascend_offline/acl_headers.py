"""The headers of ACL, with which MindSpore compiles the call of a custom operator: of CANN, or of torch-npu's wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

WHEEL = "torch-npu==2.14.0"
INSIDE = "torch_npu/include/third_party/acl/inc/"


def find(folder: Path, download: bool = False) -> Path | None:
    """The include folder that has acl/acl_base.h, or None.

    Looked for where CANN is, in an installed torch-npu, in `folder`; and with `download` taken from the package index
    into `folder`.
    """
    places = [Path(os.environ["ASCEND_HOME_PATH"]) / "include"] if os.environ.get("ASCEND_HOME_PATH") else []
    places += [Path(path) / INSIDE for path in sys.path] + [folder / INSIDE]
    for place in places:
        if (place / "acl" / "acl_base.h").is_file():
            return place
    return _download(folder) if download else None


def _download(folder: Path) -> Path | None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    for wheel in folder.glob("torch_npu-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(INSIDE)])
        wheel.unlink()
    place = folder / INSIDE
    return place if (place / "acl" / "acl_base.h").is_file() else None
