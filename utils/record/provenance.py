"""Where a result comes from: command line, date, commit, versions, device."""
import contextlib
import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from utils.system import console
from utils.system.errors import processes_of_torchrun

ROOT = Path(__file__).resolve().parents[2]


def provenance(device: torch.device, command: str | None = None) -> dict[str, str]:
    """What is needed to repeat a run, as texts; `command` is by default that of this process."""
    command = command or shlex.join(sys.orig_argv)
    return {'command': console.one_line(command),
            'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
            'processes': str(processes_of_torchrun()), 'commit': git_commit(),
            'python': platform.python_version(),
            'torch': torch.__version__, 'device': device_name(device)}


def describe_provenance(origin: dict[str, str]) -> str:
    """The dict of provenance() in two lines."""
    processes = f'processes {origin["processes"]}, ' if origin['processes'] != '1' else ''
    return (f'command: {origin["command"]}\n'
            f'date: {origin["date"]}, {processes}commit {origin["commit"]}, '
            f'Python {origin["python"]}, torch {origin["torch"]}, {origin["device"]}')


def git_commit() -> str:
    """The commit that the program runs from, and whether tracked files differ from it."""
    # In a hook of git such variables name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}

    def git(*arguments):
        return subprocess.run(['git', '-C', str(ROOT), *arguments], capture_output=True,
                              encoding='utf-8', check=True, env=environment).stdout.strip()
    try:
        if Path(git('rev-parse', '--show-toplevel')).resolve() != ROOT:
            return 'unknown'    # a copy of the program inside some other repository
        changed = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', 'HEAD') + (' with changes' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def device_name(device: torch.device) -> str:
    """The GPU's name, or CPU and the processor's."""
    if device.type in ('cuda', 'xpu'):
        return torch.get_device_module(device).get_device_name(device)
    if device.type == 'mps':
        return f'GPU of {processor_name()}'
    return f'CPU: {processor_name()}, {os.cpu_count()} cores'


def processor_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.split(': ')[1].strip() for line in lines if line.startswith('model name'))
    with contextlib.suppress(OSError, subprocess.CalledProcessError):       # macOS
        return subprocess.run(['sysctl', '-n', 'machdep.cpu.brand_string'], capture_output=True,
                              encoding='utf-8', check=True).stdout.strip()
    return platform.processor() or platform.machine()
