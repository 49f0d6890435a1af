"""Build C++ sources into a shared library at its first use, cache it, and load it."""
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from utils.system.files import cache_folder

Loaded = TypeVar('Loaded')
# -fopenmp would fail with Apple's clang: threads are those of threads.h.
COMMON = ['-O3', '-fopenmp-simd', '-pthread', '-fno-math-errno', '-fno-trapping-math', '-shared',
          '-fPIC']
THREADS = Path(__file__).with_name('threads.h')
DIGEST = 32     # bytes of SHA-256 at the end of a cached library, which the loader ignores


class BuildError(Exception):
    """Why there is no library, in one line."""


def load(name: str, sources: Sequence[Path], flags: list[str], identity: object,
         loader: Callable[[str], Loaded]) -> Loaded:
    """Return loader(path) of the library built from `sources`, or of its cached file.

    flags: the compiler's, beside COMMON. Sources that do not end in .cpp are headers. identity:
    what decides the result beside the sources and $CXX. A compiler that fails is followed by the
    next one. Raises BuildError where all fail.
    """
    texts = [path.read_text(encoding='utf-8') for path in sources]
    decided_by = [*texts, COMMON, identity, os.environ.get('CXX')]
    digest = hashlib.sha256(repr(decided_by).encode()).hexdigest()[:16]
    path = cache_folder() / f'{name}-{digest}.so'
    try:
        if is_whole(path):
            return loader(str(path))
    except OSError:
        pass    # built by another system: build it anew
    units = [str(source) for source in sources if source.suffix == '.cpp']
    reason = 'there is no C++ compiler'
    with build_folder(path.parent) as folder:
        for compiler in compilers():
            try:
                build([*compiler, *COMMON, *units, *flags], path, folder)
                return loader(str(path))
            except (OSError, BuildError) as error:
                reason = f'{shlex.join(compiler)} failed: {error}'
    raise BuildError(reason)


def build_folder(cache: Path) -> tempfile.TemporaryDirectory:
    """A new folder inside that of the cache. Raises BuildError where none can be made."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=cache)
    except OSError as error:
        raise BuildError(f'the cache folder {cache} cannot be written '
                         f'({error.strerror or error})') from error


def compilers() -> list[list[str]]:
    """The commands to try: $CXX, which may have arguments, then those with the usual names."""
    commands = [[name] for name in ('g++', 'clang++', 'c++') if shutil.which(name)]
    if chosen := os.environ.get('CXX'):
        command = [chosen]
        if not shutil.which(chosen):
            with suppress(ValueError):      # an unclosed quote
                command = shlex.split(chosen)
        commands.insert(0, command)
    return commands


def build(command: list[str], path: Path, folder: str):
    """Compile in `folder`, then move the library with its digest to `path`, atomically."""
    built = Path(folder) / path.name
    code, message = run([*command, '-o', str(built)])
    if code:
        lines = message.strip().splitlines()
        errors = [line for line in lines if 'error' in line] or lines or ['no message']
        raise BuildError(errors[0])
    with open(built, 'r+b') as file:
        file.write(hashlib.sha256(file.read()).digest())
    os.replace(built, path)


def run(command: list[str]) -> tuple[int, str]:
    """Return the exit code and the errors of a command; a signal ends its child processes too."""
    group = {'process_group': 0} if hasattr(os, 'killpg') else {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          encoding='utf-8', errors='replace', **group) as process:
        try:
            errors = process.communicate()[1]
        except BaseException:
            if group:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            raise
        return process.returncode, errors


def is_whole(path: Path) -> bool:
    """Whether a cached library is complete; loading a truncated one kills the process."""
    if not path.is_file():
        return False
    data = path.read_bytes()
    return hashlib.sha256(data[:-DIGEST]).digest() == data[-DIGEST:]


def native_flags() -> list[str]:
    """The flags for this processor only: none on Arm, where NEON is in every 64-bit one."""
    return ['-march=native'] if platform.machine() in ('x86_64', 'AMD64', 'i686') else []


def processor() -> tuple[str, str]:
    """Architecture and feature flags, which decide whether a native library runs here."""
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            features = next((line for line in file if line.startswith(('flags', 'Features'))), '')
    except OSError:
        features = platform.processor()
    return platform.machine(), features
