"""C compiled on the machine that runs it, once, and kept in the user's cache folder.

Nothing depends on it: where there is no compiler, what would be compiled has a twin in PyTorch. CLEARHEAD_COMPILE=0 in
the environment asks for the twins; CC names another compiler than `cc`.
"""

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-w")
_log = logging.getLogger(__name__)


@lru_cache
def compiled(source: Path) -> ctypes.CDLL | str:
    """The library made of `source`, or why there is none, in words."""
    if os.environ.get("CLEARHEAD_COMPILE") == "0":
        return "not compiled: CLEARHEAD_COMPILE is 0"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or not shutil.which(compiler[0]):
        return f"not compiled: no C compiler ({' '.join(compiler) or 'CC is empty'}) on this machine"
    try:
        return ctypes.CDLL(str(_made(source, compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        why = next((line for line in said if "error" in line), said[-1])
        reason = f"not compiled: {' '.join(compiler)} failed: {why.strip()}"
        _log.warning("%s is %s; PyTorch does its work, slower", source.name, reason)
        return reason


def parts(source: Path) -> list[Path]:
    """The file and what it includes from its own folder, and so on, in the order of first mention."""
    found = [source]
    for file in found:  # which grows
        names = re.findall(r'^\s*#\s*include\s*"(.+)"', file.read_text(encoding="utf-8"), re.MULTILINE)
        found += [part for part in map(source.with_name, names) if part not in found and part.exists()]
    return found


def _made(source: Path, compiler: list[str]) -> Path:
    """The library's file. Its name tells source, compiler and processor: folders are shared between machines."""
    content = (file.read_bytes() for file in parts(source))
    key = hashlib.sha256(b"\0".join([*content, repr((compiler, _FLAGS, _processor())).encode()])).hexdigest()[:16]
    folder = _folder()
    file = folder / f"{source.stem}-{key}.so"
    if not file.exists():
        # made elsewhere and moved: several processes may do so at once, and none sees half a file
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            made = Path(beside, file.name)
            command = [*compiler, *_FLAGS, str(source), "-o", str(made), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            made.replace(file)
    return file


def _folder() -> Path:
    """Where libraries are kept; no one else may write there, for what lies there is run."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base, __name__.partition(".")[0])
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
        if os.access(folder, os.W_OK) and state.st_uid == os.getuid() and not state.st_mode & 0o022:
            return folder
    except OSError:
        pass
    return _for_this_process()


@lru_cache
def _for_this_process() -> Path:
    folder = tempfile.mkdtemp(prefix="clearhead-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _processor() -> str:
    """What -march=native depends on."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = {line for line in file if line.startswith(("model name", "flags", "Features", "CPU part"))}
        return "".join(sorted(lines))
    except OSError:
        return platform.processor() + platform.machine() + platform.platform()
