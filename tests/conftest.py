import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

import utils  # noqa: E402, F401  (before torch)

import models  # noqa: E402
from models.blocks import Units, network  # noqa: E402


@models.register(inpsize=32, smallest=16, variants={
    'smallwbin': dict(signLayers=''),
    'smallfbin': dict(signLayers='2-3'),
})
def smallwbin(nClasses, channels, inpsize, signLayers):
    """A network that trains in a moment, wherever the network is not the point."""
    unit = Units(signLayers, biasLayers='1,4')
    return network(**unit(channels, 8, 3, stride=2), **unit(8, 12, 3, dropout=0.1),
                   **unit(12, 12, 3, groups=4), pool=nn.AdaptiveAvgPool2d(1),
                   **unit.conv(12, nClasses, 1))


# else there is one for all
if 'PYTEST_XDIST_WORKER' not in os.environ and not multiprocessing.parent_process():
    CACHE = tempfile.TemporaryDirectory()
    os.environ['XDG_CACHE_HOME'] = CACHE.name     # the user's own caches stay as they are
# small tensors: a second thread costs more than it gives on a busy machine
torch.set_num_threads(1)


BUILD = 'import utils; from utils.native import cpu; from utils.packed import ops; cpu.library(), ops.has_kernel()'
BUILDING = pytest.StashKey()


def pytest_configure(config):
    """The compiled code is built once while the workers start, not by each of them when it needs
    it."""
    if (config.getoption('numprocesses', None) or 0) > 1:
        config.stash[BUILDING] = subprocess.Popen(
            [sys.executable, '-c', BUILD], cwd=ROOT, stderr=subprocess.DEVNULL,
            start_new_session=True)


def pytest_unconfigure(config):
    building = config.stash.get(BUILDING, None)
    if building and building.poll() is None:
        os.killpg(building.pid, signal.SIGKILL)     # the compiler too
        building.wait()


@pytest.fixture(scope='session')
def sketch_folder(tmp_path_factory):
    """train/ and val/ of three classes of small drawings: bars, boxes, rings."""
    root = tmp_path_factory.mktemp('sketches')
    rng = np.random.default_rng(0)
    for split, count in (('train', 12), ('val', 4)):
        for name in ('bar', 'box', 'ring'):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new('L', (90, 90), 255)
                draw = ImageDraw.Draw(image)
                x, y, size = rng.integers(10, 40), rng.integers(10, 40), rng.integers(20, 40)
                corners = (int(x), int(y), int(x + size), int(y + size))
                {'bar': draw.line, 'box': draw.rectangle,
                 'ring': draw.ellipse}[name](corners, width=3, **(
                    {'fill': 0} if name == 'bar' else {'outline': 0}))
                image.save(root / split / name / f'{number}.png')
    return root


def flags_of(*words):
    """The flags of main.py under this command."""
    import opts
    from utils.flags import resolve
    return resolve.resolve(opts.parse(words))[0]


# Processes that run a command are forked from a server that has imported it once.
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['pytest', 'main', 'utils.compare.__main__',
                               'torchvision.transforms.v2', 'torch._dynamo'])


class Command:
    """A command, a function of its arguments, in a process and a session of its own."""

    def __init__(self, folder, function, arguments, stdout=None, encoding='utf-8'):
        self.outputs = [Path(stdout or folder / f'out{time.monotonic_ns()}'),
                        folder / f'err{time.monotonic_ns()}']
        self.process = SERVER.Process(target=run_command, args=(
            function, arguments, self.outputs, encoding, os.environ['XDG_CACHE_HOME']))
        os.environ['PYTHONPATH'] = str(ROOT)    # where the server imports from
        self.process.start()

    def wait(self, timeout=60):
        """The exit code, what it printed, and its errors."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, 'it does not end'
        out, err = (path.read_text(errors='replace') if path.is_file() else ''
                    for path in self.outputs)
        return self.process.exitcode, out, err

    def wait_for(self, condition, timeout=60):
        deadline = time.monotonic() + timeout
        while not condition() and self.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert condition(), self.outputs[1].read_text()

    def send(self, number):
        """A signal to the process and its workers, as a terminal sends it."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:      # it has no session of its own yet
            os.kill(self.process.pid, number)

    def kill(self):
        self.send(signal.SIGKILL)
        self.process.join()


def run_command(function, arguments, outputs, encoding, cache):
    os.environ['XDG_CACHE_HOME'] = cache    # the server has that of the test that started it
    os.setsid()
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY), number)
    sys.stdout, sys.stderr = (open(number, 'w', buffering, encoding, closefd=False)
                              # stderr by lines, as Python's own
                              for number, buffering in ((1, -1), (2, 1)))
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)    # of loading workers, not the server's
    function(*arguments)


def run_script(script, environment):
    """For Command: Python code under these variables of the environment."""
    os.environ.update(environment)
    exec(script)


@pytest.fixture
def start(tmp_path):
    """Starts a Command; those that still run are killed after the test."""
    started = []

    def run(function, *arguments, **options):
        started.append(Command(tmp_path, function, arguments, **options))
        return started[-1]
    yield run
    for command in started:
        if command.process.is_alive():
            command.kill()


@pytest.fixture
def at_once():
    """Ends the test where something waits for ever."""
    def give_up(*_):
        pytest.fail('it waits')
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
