"""Libraries that let MindSpore load its Ascend plugin on a machine without CANN, to compile graphs and no more.

MindSpore's plugin wants some dozens of CANN's libraries. Their symbols are known: what the plugin lacks and nothing on
this machine has. Each becomes a function that returns 0, in one library that all the others name as theirs. Nothing can
be run with it.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SYSTEM_LIBRARIES = ("c", "m", "pthread", "dl", "rt", "stdc++", "gcc_s", "gomp", "z", "ssl", "crypto")

# objects with a shared_ptr inside, whose constructor has to clear it
CONSTRUCTORS = ("ge::TensorType::TensorType", "ge::AscendString::AscendString", "ge::Promote::Promote")

# what others bring: Python, the compiler's runtime, MindSpore itself
OF_OTHERS = ("Py", "_Py", "_ITM", "__cxa", "__gmon", "_ZTH")
OF_OTHERS_DEMANGLED = ("std::", "mindspore::", "absl", "operator", "typeinfo", "vtable", "TLS init")

STATUS_FACTORY = """
#include <map>
#include <string>
namespace ge {
class StatusFactory {
 public:
  static StatusFactory* Instance();
  std::map<unsigned, std::string> names;
  char room[256] = {0};
};
StatusFactory* StatusFactory::Instance() {
  static StatusFactory factory;
  return &factory;
}
}  // namespace ge
"""


class StubError(RuntimeError):
    """The libraries cannot be made here; the message says why."""


def build(folder: Path) -> list[str]:
    """Makes the libraries in a folder, which LD_LIBRARY_PATH then has to name. Returns their names.

    Raises:
        StubError: this MindSpore has no Ascend plugin, or a tool of the compiler is missing.
    """
    spec = find_spec("mindspore")
    if spec is None:
        raise StubError("no MindSpore here")
    root = Path(spec.submodule_search_locations[0]) / "lib"
    libraries = [path for path in root.rglob("*.so*") if path.is_file() and not _is_beside(path.relative_to(root))]
    plugins = [path for path in libraries if "ascend" in str(path.relative_to(root)).lower()]
    if not plugins:
        raise StubError(f"the MindSpore in {root} has no Ascend plugin")
    symbols = _missing_symbols(libraries, plugins)
    wanted = _missing_libraries(plugins, root)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "symbols.c").write_text("".join(_definition(name, readable) for name, readable in symbols.items()))
    (folder / "status_factory.cc").write_text(STATUS_FACTORY)
    (folder / "empty.c").write_text("\n")
    _run("gcc", "-O1", "-fPIC", "-w", "-fno-builtin", "-c", "symbols.c", cwd=folder)
    # MindSpore is built with the old ABI of std::string
    objects = ("symbols.o", "status_factory.cc")
    options = ("-D_GLIBCXX_USE_CXX11_ABI=0", "-O1", "-fPIC", "-shared", "-Wl,-soname,libcannstub.so")
    _run("g++", *options, *objects, "-o", "libcannstub.so", cwd=folder)
    linked = ("-Wl,--no-as-needed", "-L.", "-lcannstub", "-Wl,-rpath,$ORIGIN")
    for name in wanted:
        _run("gcc", "-shared", "empty.c", "-o", name, *linked, f"-Wl,-soname,{name}", cwd=folder)
    return wanted


def _is_beside(path: Path) -> bool:
    """Plugins for other devices, and operator packages."""
    return any(part in str(path) for part in ("gpu", "opp", "op_kernels"))


def _missing_symbols(libraries: list[Path], plugins: list[Path]) -> dict[str, str]:
    """Returns mangled → demangled name of every symbol that the plugins use and no library here defines."""
    system = [path for name in SYSTEM_LIBRARIES for path in _system_library(name)]
    defined = {symbol.split("@")[0] for path in (*libraries, *system) for symbol in _symbols(path, "--defined-only")}
    used = {symbol for path in plugins for symbol in _symbols(path, "--undefined-only")}
    versions = ("@GLIBC", "@CXXABI", "@GCC", "@GOMP", "@OMP")
    used = {symbol.split("@")[0] for symbol in used if not any(version in symbol for version in versions)}
    missing = sorted(used - defined)
    readable = _run("c++filt", input="\n".join(missing)).splitlines()
    return {name: text for name, text in zip(missing, readable, strict=True) if _is_of_cann(name, text)}


def _is_of_cann(name: str, readable: str) -> bool:
    if name.startswith(OF_OTHERS) or readable.startswith(OF_OTHERS_DEMANGLED) or "." in name:
        return False
    return " mindspore::" not in readable.split("(")[0] and "ge::StatusFactory" not in readable


def _definition(name: str, readable: str) -> str:
    """In C, where a mangled name is a name like any other."""
    if readable.startswith(CONSTRUCTORS):
        return f"void* {name}(void** self) {{ self[0] = self[1] = 0; return 0; }}\n"
    if "nstance()" in readable:  # a singleton: something to point at
        return f"void* {name}(void) {{ static char room[65536]; return room; }}\n"
    return f"void* {name}(void) {{ return 0; }}\n"


def _missing_libraries(plugins: list[Path], root: Path) -> list[str]:
    lines = [
        line
        for path in plugins
        for line in _run("ldd", str(path), check=False, env={"LD_LIBRARY_PATH": str(root)}).splitlines()
    ]
    names = {line.split()[0] for line in lines if "not found" in line}
    return sorted(name for name in names if not name.startswith(("libmindspore", "libd_collective")))


def _system_library(name: str) -> list[Path]:
    folders = (Path("/lib"), Path("/usr/lib"), *Path("/lib").glob("*-linux-gnu"), *Path("/usr/lib").glob("*-linux-gnu"))
    return [path for folder in folders for path in folder.glob(f"lib{name}.so.*")]


def _symbols(path: Path, which: str) -> list[str]:
    return [line.split()[-1] for line in _run("nm", "-D", which, str(path), check=False).splitlines() if line.strip()]


def _run(*command: str, check: bool = True, **settings) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, **settings)
    except FileNotFoundError:
        raise StubError(f"{command[0]} is not on PATH (on Debian: apt install binutils gcc)") from None
    if check and done.returncode:
        raise StubError(f"{' '.join(command)[:200]}: {done.stderr.strip()[-500:]}")
    return done.stdout


if __name__ == "__main__":
    print(len(build(Path(sys.argv[1]))), "libraries")
