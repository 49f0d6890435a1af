"""Compiled binarization: projection, search, W~ and gradient, fused; the builder of all C++.

It is used only while utils/binarize.py says what it was written for: see is_written_for.
"""
import ast
import functools
import hashlib
import importlib
import inspect
import textwrap
import warnings
from types import CodeType, ModuleType

import torch
from torch import Tensor

METHODS = {'cpu': ('dab',), 'cuda': ('dab', 'xnor', 'bnn')}     # with code, by type of device
MODULES = {'cpu': '.cpu', 'cuda': '.gpu'}   # with supports, forward_ and backward
WRITTEN_FOR = {     # the digest of the functions of each method, see is_written_for
    'dab': '7133065ebf0d0a07',
    'xnor': '7f6d31ae8bda4c5b',
    'bnn': '67052379ddf0955a',
}


class Unsupported(Exception):
    """Compiled code could not be built or started; no tensor was changed."""


def covers(weight: Tensor, method: str) -> bool:
    """Whether there is compiled code for such weights, if it can be built on this machine."""
    return (method in METHODS.get(weight.device.type, ()) and weight.dtype == torch.float32
            and weight.is_contiguous())


def compiled(device: torch.device) -> ModuleType:
    """The module of the code for a type of device, with forward_ and backward."""
    return importlib.import_module(MODULES[device.type], __name__)


def is_written_for(name: str, functions: tuple[CodeType, ...], title: str) -> bool:
    """Whether the compiled method `name` was written for these functions of utils/binarize.py.

    Their texts decide, without docstrings and comments. Where they differ, warns once.
    tests/test_native.py prints a new digest, to be entered after a change of both.
    """
    is_same = digest(functions) == WRITTEN_FOR[name]
    if not is_same:
        warn_once(f'{title}: its source is not what the compiled code was written for, so it runs '
                  'in PyTorch as it is written, which is slower')
    return is_same


warn_once = functools.cache(warnings.warn)


def functions_of(*classes: type) -> tuple[CodeType, ...]:
    """The code of the functions that the classes define, sorted by name."""
    members = [getattr(member, '__func__', member) for cls in classes
               for _, member in sorted(vars(cls).items())]
    return tuple(member.__code__ for member in members if hasattr(member, '__code__'))


@functools.cache
def digest(functions: tuple[CodeType, ...]) -> str:
    """A hash of their texts; '?' where there is no text, as of what was typed into a shell."""
    try:
        return hashlib.sha256('\n'.join(map(text, functions)).encode()).hexdigest()[:16]
    except (OSError, TypeError, SyntaxError, AttributeError):
        return '?'


def text(function: CodeType) -> str:
    """The source of a function without its docstring, comment lines and indentation."""
    source = textwrap.dedent(inspect.getsource(function))
    lines, body = source.splitlines(), ast.parse(source).body[0].body
    if ast.get_docstring(ast.parse(source).body[0]) is not None:
        lines[body[0].lineno - 1:body[0].end_lineno] = []
    return '\n'.join(line for line in lines if line.strip() and not line.strip().startswith('#'))
