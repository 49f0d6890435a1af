"""Mistakes of the user, which a command reports in one sentence; bugs keep their traceback."""
import contextlib
import os
import sys
import warnings
from collections.abc import Iterator


class InputError(ValueError):
    """A flag, a file or a dataset that cannot be used; str() is one sentence that names it."""

    exit_code = 2


class RunError(InputError):
    """What ends a run that started well: a damaged image, a diverging loss, a full disk."""

    exit_code = 1


@contextlib.contextmanager
def naming(what: str, kind: type[InputError] = InputError) -> Iterator[None]:
    """Put `what`, a flag or a file, in front of an InputError inside the block.

    An OSError there becomes an error of type `kind`.
    """
    try:
        yield
    except InputError as error:
        sentence = str(error)
        raise error if sentence.startswith(what) else type(error)(f'{what}: {sentence}') from error
    except OSError as error:
        place = f'{error.filename}: ' if error.filename and str(error.filename) != what else ''
        raise kind(f'{what}: {place}{error.strerror or error}') from error


@contextlib.contextmanager
def reported(program: str, after_interrupt: str = '') -> Iterator[None]:
    """Exit with one sentence on stderr after an InputError, a refusal of the system, or Ctrl-C.

    Warnings are one line there, too.
    """
    warnings.formatwarning = lambda message, *_, **__: f'{program}: warning: {message}\n'
    try:
        yield
    except KeyboardInterrupt:
        exit_with(program, f'stopped by Ctrl-C{after_interrupt}', 130)
    except InputError as error:
        exit_with(program, str(error), error.exit_code)
    except OSError as error:
        if error.errno is None:     # not the operating system's refusal, but a bug of ours
            raise
        place = f'{error.filename}: ' if error.filename else ''
        exit_with(program, f'{place}{error.strerror}', RunError.exit_code)


def exit_with(program: str, sentence: str, code: int):
    # Under torchrun all processes make the same mistake at the start; any of them can fail later.
    if os.environ.get('LOCAL_RANK', '0') == '0' or code == RunError.exit_code:
        sys.stderr.write(f'{program}: error: {sentence}\n')
    sys.exit(code)
