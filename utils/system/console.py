"""Output to a terminal, pipe or file that may be closed, full, or unable to show a character.

All that is printed goes through here: control characters, which names of classes and files can
hold, would be commands to a terminal and are shown as escapes.
"""
import contextlib
import os
import select
import sys
import warnings
from collections.abc import Callable


def prepare():
    """Show characters that an output cannot show as an escape, and nothing where it is closed."""
    for name in 'stdout', 'stderr':
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))
        elif hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')


def show(text: str):
    """Print a text that is recorded nowhere else. Raises OSError where it cannot be printed."""
    _print(text, sys.stdout)


def say(text: str):
    """Print a text that is recorded elsewhere too: where it cannot be printed, go on without."""
    _print_if_possible(text, sys.stdout)


def complain(text: str):
    """Print a text to stderr, as far as that can be done."""
    _print_if_possible(text, sys.stderr)


def _print(text, stream):       # in one piece: other threads print
    print(f'{escaped(text)}\n', end='', file=stream, flush=True)


def _print_if_possible(text, stream):
    try:
        _print(text, stream)
    except OSError:
        discard(stream)


def escaped(text: str) -> str:
    """The text with what is not printable as escapes, but for line ends."""
    return '\n'.join(map(one_line, text.split('\n')))


def show_warnings(program: str):
    """Show each warning from now on as '<program>: warning: <message>'."""
    def line_of(message, *_, **__):     # Python calls it for what it shows, and for nothing else
        line = one_line(f'{program}: warning: {message}')
        _warnings.append(line)
        record(line)
        return f'{line}\n'
    _warnings.clear()
    warnings.formatwarning = line_of


_warnings: list[str] = []       # shown since show_warnings
_recorder: Callable[[str], None] | None = None


def record(line: str):
    """Record a line as a warning is recorded."""
    if _recorder:
        _recorder(line)


def record_warnings(recorder: Callable[[str], None] | None):
    """Call recorder(line) for each warning since show_warnings and from now on; None ends that.

    Processes that are forked later call it too.
    """
    global _recorder
    _recorder = recorder
    for line in _warnings if recorder else ():
        record(line)


def one_line(text: str) -> str:
    """The text with line ends and other characters that are not printable as escapes."""
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def discard(stream):
    """Let everything that is written to this stream from now on, or still waits, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def is_closed(stream) -> bool:
    """Whether nobody reads the pipe any more that the stream writes to."""
    if not hasattr(select, 'poll'):     # Windows
        return True
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def can_be_written(stream) -> bool:
    """Whether what waits in the stream can be written; if not, it is discarded."""
    try:
        stream.flush()
    except OSError:
        discard(stream)
        return False
    return True
