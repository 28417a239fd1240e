"""Builds stub libraries with which MindSpore loads its Ascend plugin on a machine without CANN, to compile graphs only.

The plugin links to dozens of CANN's libraries. Their symbols are those that the plugin uses and nothing on this machine
defines. Each becomes a function that returns 0, all in one library, and every library of CANN becomes an empty one that
links to it. Nothing can run with these stubs.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SYSTEM_LIBRARIES = ("c", "m", "pthread", "dl", "rt", "stdc++", "gcc_s", "gomp", "z", "ssl", "crypto")

# objects that contain a shared_ptr, which the constructor must clear
CONSTRUCTORS = ("ge::TensorType::TensorType", "ge::AscendString::AscendString", "ge::Promote::Promote")

# symbols of Python, the compiler's runtime, and MindSpore itself
OTHER_PREFIXES = ("Py", "_Py", "_ITM", "__cxa", "__gmon", "_ZTH")
OTHER_PREFIXES_DEMANGLED = ("std::", "mindspore::", "absl", "operator", "typeinfo", "vtable", "TLS init")

STATUS_FACTORY = """
#include <map>
#include <string>
namespace ge {
class StatusFactory {
 public:
  static StatusFactory* Instance();
  std::map<unsigned, std::string> names;
  char padding[256] = {0};
};
StatusFactory* StatusFactory::Instance() {
  static StatusFactory factory;
  return &factory;
}
}  // namespace ge
"""


class StubError(RuntimeError):
    """The stubs cannot be built on this machine; the message says why."""


def build(folder: Path) -> list[str]:
    """Builds the libraries in a folder, which LD_LIBRARY_PATH must then name. Returns their names.

    Raises:
        StubError: this MindSpore has no Ascend plugin, or a tool of the compiler is missing.
    """
    spec = find_spec("mindspore")
    if spec is None:
        raise StubError("MindSpore is not installed here")
    root = Path(spec.submodule_search_locations[0]) / "lib"
    libraries = [path for path in root.rglob("*.so*") if path.is_file() and not _is_unrelated(path.relative_to(root))]
    plugins = [path for path in libraries if "ascend" in str(path.relative_to(root)).lower()]
    if not plugins:
        raise StubError(f"the MindSpore in {root} has no Ascend plugin")
    symbols = _missing_symbols(libraries, plugins)
    names = _missing_libraries(plugins, root)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "symbols.c").write_text("".join(_definition(*symbol) for symbol in symbols.items()))
    (folder / "status_factory.cc").write_text(STATUS_FACTORY)
    (folder / "empty.c").write_text("\n")

    _run("gcc", "-O1", "-fPIC", "-w", "-fno-builtin", "-c", "symbols.c", cwd=folder)
    # MindSpore is built with the old ABI of std::string
    options = ("-D_GLIBCXX_USE_CXX11_ABI=0", "-O1", "-fPIC", "-shared", "-Wl,-soname,libcannstub.so")
    _run("g++", *options, "symbols.o", "status_factory.cc", "-o", "libcannstub.so", cwd=folder)
    link_options = ("-Wl,--no-as-needed", "-L.", "-lcannstub", "-Wl,-rpath,$ORIGIN")
    for name in names:
        _run("gcc", "-shared", "empty.c", "-o", name, *link_options, f"-Wl,-soname,{name}", cwd=folder)
    return names


def _is_unrelated(path: Path) -> bool:
    """True if a library is a plugin for another device or belongs to an operator package."""
    return any(part in str(path) for part in ("gpu", "opp", "op_kernels"))


def _missing_symbols(libraries: list[Path], plugins: list[Path]) -> dict[str, str]:
    """Returns mangled → demangled name of every symbol that the plugins use and no library here defines."""
    system = [path for name in SYSTEM_LIBRARIES for path in _system_library(name)]
    defined = {symbol.split("@")[0] for path in (*libraries, *system) for symbol in _symbols(path, "--defined-only")}
    used = {symbol for path in plugins for symbol in _symbols(path, "--undefined-only")}
    versions = ("@GLIBC", "@CXXABI", "@GCC", "@GOMP", "@OMP")
    used = {symbol.split("@")[0] for symbol in used if not any(version in symbol for version in versions)}
    missing = sorted(used - defined)
    demangled = _run("c++filt", input="\n".join(missing)).splitlines()
    symbols = dict(zip(missing, demangled, strict=True))
    return {name: readable for name, readable in symbols.items() if _is_from_cann(name, readable)}


def _is_from_cann(name: str, demangled: str) -> bool:
    if name.startswith(OTHER_PREFIXES) or demangled.startswith(OTHER_PREFIXES_DEMANGLED) or "." in name:
        return False
    return " mindspore::" not in demangled.split("(")[0] and "ge::StatusFactory" not in demangled


def _definition(name: str, demangled: str) -> str:
    """Returns a C function with a symbol's name: in C, a mangled name is a name like any other."""
    if demangled.startswith(CONSTRUCTORS):
        return f"void* {name}(void** self) {{ self[0] = self[1] = 0; return 0; }}\n"
    if "nstance()" in demangled:  # a singleton: callers need an object to point to
        return f"void* {name}(void) {{ static char object[65536]; return object; }}\n"
    return f"void* {name}(void) {{ return 0; }}\n"


def _missing_libraries(plugins: list[Path], root: Path) -> list[str]:
    """Returns the names of the libraries that the plugins link to and that this machine does not have."""
    names = set()
    for path in plugins:
        output = _run("ldd", str(path), check=False, env={"LD_LIBRARY_PATH": str(root)})
        names |= {line.split()[0] for line in output.splitlines() if "not found" in line}
    return sorted(name for name in names if not name.startswith(("libmindspore", "libd_collective")))


def _system_library(name: str) -> list[Path]:
    folders = (Path("/lib"), Path("/usr/lib"), *Path("/lib").glob("*-linux-gnu"), *Path("/usr/lib").glob("*-linux-gnu"))
    return [path for folder in folders for path in folder.glob(f"lib{name}.so.*")]


def _symbols(path: Path, option: str) -> list[str]:
    return [line.split()[-1] for line in _run("nm", "-D", option, str(path), check=False).splitlines() if line.strip()]


def _run(*command: str, check: bool = True, **settings) -> str:
    try:
        process = subprocess.run(command, capture_output=True, text=True, **settings)
    except FileNotFoundError:
        raise StubError(f"{command[0]} is not on PATH (on Debian: apt install binutils gcc)") from None
    if check and process.returncode:
        raise StubError(f"{' '.join(command)[:200]}: {process.stderr.strip()[-500:]}")
    return process.stdout


if __name__ == "__main__":
    print(len(build(Path(sys.argv[1]))), "libraries")
