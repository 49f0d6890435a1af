"""Calls in a process of their own, whose memory is fresh and whose crash ends nothing else."""
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from typing import TypeVar

from utils.system import interrupt
from utils.system.errors import RunError

Key = TypeVar('Key')
PATIENCE = 10   # seconds that a process gets to end by itself when it is asked to


def call_in_new_process(function: Callable, *arguments):
    """function(*arguments) in a new Python process; returns or raises what it does.

    function and arguments can be pickled; Ctrl-C does not reach the function until it calls
    interrupt.listen(). Raises BrokenProcessPool where the process was killed, RunError where a
    signal asked it to stop.
    """
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'))
    try:
        start_method = multiprocessing.get_start_method()
        with interrupt.out_of_reach():
            future = pool.submit(_call, start_method, function, arguments)
        return future.result()
    except KeyboardInterrupt:
        children = multiprocessing.active_children()
        pool.shutdown(wait=False)
        end(children)
        raise
    finally:
        pool.shutdown()


def end(children: list[multiprocessing.Process]):
    """Ask them to end and, after PATIENCE in all, make them."""
    with interrupt.must_finish():
        for stop in multiprocessing.Process.terminate, multiprocessing.Process.kill:
            deadline = time.monotonic() + PATIENCE
            for process in children:
                stop(process)
            # Not join, which waits for the processes that these have forked too.
            while any(process.is_alive() for process in children) and time.monotonic() < deadline:
                time.sleep(0.02)


def side_by_side(calls: Mapping[Key, Callable], most: int
                 ) -> Iterator[list[tuple[Key, Callable]]]:
    """Run the calls, at most `most` at a time; yield (key, function) for those that ended.

    Each call is a call_in_new_process; the function returns or raises what it did. Calls end with
    the generator. With most=1, yield the calls unexecuted.
    """
    if most == 1:
        yield from ([call] for call in calls.items())
        return
    pool = ThreadPoolExecutor(most)
    running = {pool.submit(call): key for key, call in calls.items()}
    try:
        while running:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            yield [(running.pop(call), call.result) for call in ended]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(call.done() for call in running):     # one may be starting its process
            end(multiprocessing.active_children())
            wait(running, 0.1)


def _call(start_method, function, arguments):
    """In the new process, which ends with this one.

    Its loading workers start as in this one, not by the slow 'spawn'.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.set_start_method(start_method, force=True)
    try:
        return function(*arguments)
    except KeyboardInterrupt as stopped:
        raise RunError(f'its process was {stopped}') from None
    except Exception as error:
        if not _can_be_sent(error):
            raise RuntimeError(f'{type(error).__name__}: {error}') from error
        raise


def _can_be_sent(error):
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:       # whatever the class of the error does
        return False
    return True


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
