"""utils/native/threads.h and what is built with it, by compilers without OpenMP."""
import ctypes
import os
import platform
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from conftest import ROOT

from utils.native import compiler, cpu

pytestmark = pytest.mark.skipif(
    shutil.which('g++') is None or sys.platform != 'linux', reason='no g++, or not Linux')

EXACT = {'rtol': 0, 'atol': 0}
MEET = f'''
#include "{compiler.THREADS}"
#include <chrono>
#include <sys/syscall.h>
#include <unistd.h>
// Thread ids of parts that wait for each other. Returns how many met.
extern "C" int meet(int parts, int threads, int* ids) {{
    std::atomic<int> here{{0}}, most{{0}};
    const auto wait = std::chrono::seconds(threads > 1 ? 20 : 0);
    const auto deadline = std::chrono::steady_clock::now() + wait;
    in_threads(parts, 1, threads, [&](int64_t begin, int64_t end) {{
        here++;
        while (here < threads && std::chrono::steady_clock::now() < deadline)
            std::this_thread::yield();
        most = std::max<int>(most, here);
        for (int64_t part = begin; part < end; part++) ids[part] = syscall(SYS_gettid);
    }});
    return most;
}}
'''


@pytest.fixture(scope='module', params=['refuses -fopenmp', 'clang++'])
def cxx(request, tmp_path_factory):
    """A compiler as Apple's, and clang++, each of which notes what it has built."""
    if request.param == 'clang++' and not shutil.which('clang++'):
        pytest.skip('no clang++')
    path = tmp_path_factory.mktemp('compiler') / 'cxx'
    path.write_text(f"""#!/bin/sh
case " $* " in *" -fopenmp "*) echo "error: unsupported option '-fopenmp'" >&2; exit 1;; esac
{'clang++' if request.param == 'clang++' else 'g++'} "$@" && echo built >> {path}.log
""")
    path.chmod(0o755)
    return path


def build(cxx, name, sources, flags):
    """The library, not built by the next compiler after a failure."""
    log = cxx.with_name('cxx.log')
    before = log.read_text() if log.exists() else ''
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('CXX', str(cxx))
        patch.setenv('XDG_CACHE_HOME', str(cxx.parent))
        library = compiler.load(name, sources, flags, None, ctypes.CDLL)
    assert log.read_text() != before
    return library


@pytest.fixture(scope='module')
def library(cxx):
    source = cxx.with_name('meet.cpp')
    source.write_text(MEET)
    return build(cxx, 'meet', [source], ['-std=c++17'])


def meet(library, parts, threads):
    ids = (ctypes.c_int * parts)()
    return library.meet(parts, threads, ids), list(ids)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    torch.ones(1 << 20).add_(1)     # PyTorch starts its threads
    yield
    torch.set_num_threads(1)


def test_the_threads_are_those_of_pytorch(library, two_threads):
    before = {int(name) for name in os.listdir('/proc/self/task')}
    for parts, threads in (2, 2), (7, 2), (1, 2), (5, 1):
        met, ids = meet(library, parts, threads if parts > 1 else 1)
        assert met == min(parts, threads) == len(set(ids)) and set(ids) <= before
    assert set(ids) == {threading.get_native_id()}
    met, ids = meet(library, 3, 3)
    assert met == 3 == len(set(ids))


def test_without_pytorch_they_are_our_own_also_after_a_fork(library):
    script = f'''
import ctypes, os
library, ids = ctypes.CDLL({library._name!r}), (ctypes.c_int * 3)()
assert not hasattr(ctypes.CDLL(None), 'GOMP_parallel')
print(library.meet(3, 3, ids), len({{*ids}}), flush=True)
if not (child := os.fork()):
    os._exit(library.meet(3, 3, ids))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                          timeout=60)
    assert (done.returncode, done.stdout) == (0, '3 3\n3\n'), done.stderr


def test_a_forked_worker_with_one_thread_goes_on(two_threads):
    """As loading workers are, after their parent used two threads."""
    def run():
        weight = torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(0))
        return cpu.forward_(weight, 'dab')[0].sum().item()
    if cpu.library() is None:
        pytest.skip('no C++ compiler')
    expected = run()
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        os._exit(run() == expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_the_search_is_the_same(cxx, monkeypatch):
    """Bit for bit from the same compiler; another one may add up in another order."""
    usual = cpu.library()
    if usual is None:
        pytest.skip('no C++ compiler')
    other = build(cxx, 'cpu', cpu.SOURCES, cpu.FLAGS)
    results = []
    try:
        for library, threads in (usual, 1), (other, 1), (other, 2):
            monkeypatch.setattr(cpu, 'library', lambda library=library: library)
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            tensors = []
            for shape in (8, 16, 3, 3), (5, 3, 5, 5), (3, 1, 7, 7), (6, 512, 1, 1), (2, 1, 100,
                                                                                     100):
                weight = torch.randn(shape, generator=generator) * 0.6
                two_valued, values = cpu.forward_(weight, 'dab')
                tensors += [
                    weight, two_valued, values,
                    cpu.backward(two_valued, weight, values, 'dab')]
            results.append(tensors)
    finally:
        torch.set_num_threads(1)
    for tensors in results[1:]:
        for a, b in zip(results[0], tensors):
            torch.testing.assert_close(
                a, b, **({'rtol': 1e-6, 'atol': 1e-7} if 'clang' in cxx.read_text() else EXACT))


HASH = '''
import hashlib, utils, torch
from utils.packed import ops
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
x = torch.randn(2, 130, 21, 13, generator=generator)
mask = torch.rand(70, 130, 3, 3, generator=generator) < 0.3
threshold, flip = torch.randn(130, generator=generator), torch.rand(130, generator=generator) < 0.5
bits = [ops.pack_signs(x.to(memory_format=memory), threshold, flip)
        for memory in (torch.contiguous_format, torch.channels_last)]
weight = ops.prepare(ops.pack_mask(mask), 130)
out = ops.binary_conv2d(bits[0], weight, *torch.randn(2, 70, generator=generator), 130, 3, 2, 1)
data = b''.join(tensor.numpy().tobytes() for tensor in (*bits, out))
found = hashlib.sha256(data).hexdigest(), ops.has_kernel()
'''


@pytest.mark.soak
def test_packed_networks_are_the_same_bit_for_bit(cxx, tmp_path):
    """PyTorch's headers take a compiler half a minute."""
    log = cxx.with_name('cxx.log')
    log.write_text('')
    usual: dict = {}
    exec(HASH, usual)
    torch.set_num_threads(1)
    done = subprocess.run([sys.executable, '-c', f'{HASH}\nprint(*found)'], cwd=ROOT,
                          capture_output=True, text=True,
                          env=os.environ | {'CXX': str(cxx), 'XDG_CACHE_HOME': str(tmp_path)})
    assert done.stdout.split() == [usual['found'][0], 'True'], done.stderr
    assert log.read_text() == 'built\n'


@pytest.mark.parametrize('machine, flags', [('x86_64', ['-march=native']), ('aarch64', []),
                                            ('arm64', [])])
def test_flags_of_the_processor(machine, flags, monkeypatch):
    monkeypatch.setattr(platform, 'machine', lambda: machine)
    assert compiler.native_flags() == flags
