"""Finds ACL's headers, against which MindSpore compiles the call of a custom operator."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

WHEEL = "torch-npu==2.14.0"
HEADERS_IN_WHEEL = "torch_npu/include/third_party/acl/inc/"


def find(cache: Path, download: bool = False) -> Path | None:
    """Returns the include folder that contains acl/acl_base.h, or None.

    Searches CANN's folder, an installed torch-npu, and `cache`. With `download`, finally takes the headers from
    torch-npu's wheel in the package index and keeps them in `cache`.
    """
    candidates = [Path(path) / HEADERS_IN_WHEEL for path in (*sys.path, cache)]
    if cann := os.environ.get("ASCEND_HOME_PATH"):
        candidates.insert(0, Path(cann) / "include")
    for candidate in candidates:
        if _has_headers(candidate):
            return candidate
    return _download(cache) if download else None


def _has_headers(folder: Path) -> bool:
    return (folder / "acl" / "acl_base.h").is_file()


def _download(cache: Path) -> Path | None:
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), WHEEL]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    for wheel in cache.glob("torch_npu-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(cache, [name for name in archive.namelist() if name.startswith(HEADERS_IN_WHEEL)])
        wheel.unlink()
    headers = cache / HEADERS_IN_WHEEL
    return headers if _has_headers(headers) else None
