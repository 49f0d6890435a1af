"""Mistakes of the user, which a command reports in one sentence; bugs keep their traceback."""
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator

from utils.system import console, interrupt
from utils.system.interrupt import Stopped


class InputError(ValueError):
    """A flag, a file or a dataset that cannot be used; str() is one sentence that names it."""

    exit_code = 2


class RunError(InputError):
    """An error during a run: a damaged image, a diverging loss, a full disk."""

    exit_code = 1


TOO_MANY_FILES = 'Too many open files|items of ancdata'
EXPLANATIONS = {    # of what the message of a RuntimeError or MemoryError contains
    TOO_MANY_FILES: 'too many files are open: raise ulimit -n or, where processes load images, use '
                    'fewer --workers',
    r'DataLoader worker \(pid|unable to .*(shared memory|mmap|file </torch)':
        'a process that loads images was killed, or memory or /dev/shm ran out: use fewer '
        '--workers; --workers=0 needs no such process',
    r"can't allocate memory|not enough memory|out of memory|bad_alloc":
        'memory ran out: use a smaller --batch-size, --testbatchsize or --inpsize',
    r"can't start new thread": 'the system allows no more threads: use fewer --workers',
    r'(\w+) does not have a deterministic implementation':
        r'--deterministic: PyTorch has no deterministic \1: train without the flag',
    r'No working C\+\+ compiler found|Compiler: .* is not found':
        '--compile: PyTorch finds no C++ compiler: train without the flag',
    r'process pool was terminated': 'a process was killed; perhaps memory ran out',
    r'Connection (closed|reset) by peer':
        'another process of torchrun ended; its own message says why',
}


def explained(error: BaseException) -> BaseException:
    """The error, or the RunError that says in a sentence what an exception of a library means."""
    if isinstance(error, InputError) or not isinstance(error, (RuntimeError, MemoryError, OSError)):
        return error
    if isinstance(error, OSError) and not re.search(TOO_MANY_FILES, str(error)):
        return error        # it says itself what it means
    text = 'out of memory' if isinstance(error, MemoryError) else str(error)
    return next((RunError(match.expand(sentence)) for pattern, sentence in EXPLANATIONS.items()
                 if (match := re.search(pattern, text))), error)


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
        if (known := explained(error)) is not error:
            raise known from error
        place = f'{error.filename}: ' if error.filename and str(error.filename) != what else ''
        raise kind(f'{what}: {place}{error.strerror or error}') from error


@contextlib.contextmanager
def reported(program: str, after_interrupt: str = '', parallel: bool = False) -> Iterator[None]:
    """Exit with one sentence on stderr after an InputError, a refusal of the system, or a signal.

    A closed pipe ends the command in silence. parallel: whether torchrun may start the command.
    """
    let_every_process_speak(not parallel)

    def end(stopped):
        tell(f'{program}: {stopped}{after_interrupt}', stopped.exit_code)

    before = interrupt.handlers()
    try:
        begin(program, end)
        if not parallel and processes_of_torchrun() > 1:
            raise InputError(f'{program} is a command of one process: start it without torchrun, '
                             'and unset WORLD_SIZE')
        yield
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        end(stopped)
        interrupt.exit_after(stopped)
    except InputError as error:
        exit_with(f'{program}: error: {error}', error.exit_code)
    except (RuntimeError, MemoryError, OSError) as error:
        known = explained(error)
        if known is not error:
            exit_with(f'{program}: error: {known}', RunError.exit_code)
        if getattr(error, 'errno', None) is None:   # not the system's refusal, but a bug of ours
            raise
        if isinstance(error, BrokenPipeError) and console.is_closed(sys.stdout):
            console.discard(sys.stdout)
            sys.exit(RunError.exit_code)
        place = f'{error.filename}: ' if error.filename else ''
        exit_with(f'{program}: error: {place}{error.strerror}', RunError.exit_code)
    finally:
        interrupt.restore(before)


def begin(program: str, last_words: Callable[[Stopped], object] = lambda _: None):
    """Prepare this process for a command: its output, signals, and warnings of one line."""
    console.prepare()
    interrupt.listen(last_words)
    console.show_warnings(program)


def exit_with(line: str, code: int):
    tell(line, code)
    sys.exit(code)


_every_process_speaks = False


def let_every_process_speak(speaks: bool):
    """Let each process of torchrun say why it ends, while another may be missing."""
    global _every_process_speaks
    _every_process_speaks = speaks


def tell(line: str, code: int):
    """Say why the process ends with this code, where no other process says the same."""
    # Under torchrun all processes make the same mistake at the start; any of them can fail later.
    if _every_process_speaks or speaks_for_all() or code == RunError.exit_code:
        line = console.one_line(line)
        console.complain(line)
        console.record(line)    # where the process ends in the middle of a run
    console.can_be_written(sys.stdout)


TORCHRUN = 'WORLD_SIZE', 'RANK', 'MASTER_ADDR', 'MASTER_PORT'   # what it tells each process


def processes_of_torchrun() -> int:
    """How many processes torchrun started, this one among them; 1 where it started none.

    RANK or LOCAL_RANK without WORLD_SIZE, as an old shell may have them, mean nothing. Raises
    InputError where a part of TORCHRUN is missing or wrong.
    """
    size = os.environ.get('WORLD_SIZE') or '1'
    if size == '1':
        return 1
    advice = 'start the processes with torchrun or, for one process alone, unset WORLD_SIZE'
    if missing := [name for name in TORCHRUN if not os.environ.get(name)]:
        raise InputError(f'WORLD_SIZE={size} is set, but not {", ".join(missing)}: {advice}')
    size = _number('WORLD_SIZE', 1, sys.maxsize, advice)
    for name in 'RANK', 'LOCAL_RANK':
        if os.environ.get(name):
            _number(name, 0, size - 1, advice)
    _number('MASTER_PORT', 1, 2 ** 16 - 1, advice)
    return size


def _number(name, least, most, advice):
    """The environment's variable as an integer from least to most."""
    text = os.environ[name]
    if not re.fullmatch('-?[0-9]+', text) or not least <= int(text) <= most:
        wanted = f'{least} to {most}' if most < sys.maxsize else f'{least} or more'
        raise InputError(f'{name}={text} is set, but must be a number, {wanted}: {advice}')
    return int(text)


def speaks_for_all() -> bool:
    """Whether this is the process that says what all those of torchrun on this machine find."""
    try:
        return processes_of_torchrun() == 1 or os.environ.get('LOCAL_RANK', '0') == '0'
    except InputError:
        return True
