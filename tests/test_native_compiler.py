"""The builder and cache of all compiled code (utils/native/compiler.py)."""
import ctypes
import shutil

import pytest

from utils.native import compiler

pytestmark = pytest.mark.skipif(shutil.which('g++') is None, reason='no g++')


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """Builds and loads a library with $CXX as given, in an empty cache, and calls its function."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    source = tmp_path / 'answer.cpp'
    source.write_text('extern "C" int answer() { return 42; }\n')

    def run(cxx):
        monkeypatch.setenv('CXX', str(cxx))
        return compiler.load('answer', [source], [], None, ctypes.CDLL).answer()
    return run


def script(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "$@" >> "{path}.log"\n{text}\n')
    path.chmod(0o755)
    return path


def test_a_compiler_with_arguments(answer, tmp_path):
    wrapper = script(tmp_path / 'wrapper', 'exec "$@"')
    assert answer(f'{wrapper} g++ -DTHIS') == 42
    assert (tmp_path / 'wrapper.log').read_text().startswith('g++ -DTHIS -O3')


def test_a_compiler_in_a_folder_with_a_space(answer, tmp_path):
    path = script(tmp_path / 'a folder' / 'my g++', 'exec g++ "$@"')
    assert answer(path) == 42 and path.with_name('my g++.log').exists()


@pytest.mark.parametrize('exists', [False, True])
def test_a_compiler_that_fails_is_followed_by_the_next(answer, tmp_path, exists):
    path = tmp_path / 'broken'
    if exists:
        script(path, 'exit 1')
    assert answer(path) == 42 and (tmp_path / 'broken.log').exists() == exists


def test_a_truncated_library_is_built_anew(answer, tmp_path):
    assert answer('g++') == 42
    library, = tmp_path.glob('dab/answer-*.so')
    data = library.read_bytes()
    library.unlink()    # still loaded: writing to it would change that code
    library.write_bytes(data[:len(data) // 2])
    assert answer('g++') == 42 and compiler.is_whole(library)


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_compiler(answer, tmp_path,
                                                                      monkeypatch):
    (tmp_path / 'dab').write_text('a file')     # not even root can make a folder of it
    with pytest.raises(compiler.BuildError,
                       match=f'^the cache folder {tmp_path}/dab cannot be written'):
        answer('g++')
