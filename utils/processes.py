"""Calls in a process of their own, whose memory is fresh and whose crash ends nothing else."""
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

PATIENCE = 10   # seconds that an interrupted process gets to end by itself


def call_in_new_process(function: Callable, *arguments):
    """function(*arguments) in a new Python process; returns or raises what it does.

    function and arguments can be pickled. Raises BrokenProcessPool where the process was killed.
    """
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'))
    try:
        start_method = multiprocessing.get_start_method()
        return pool.submit(_call, start_method, function, arguments).result()
    except KeyboardInterrupt:       # Ctrl-C reaches the new process too, kill -INT does not
        pool.shutdown(wait=False)
        for process in multiprocessing.active_children():
            process.join(PATIENCE)
            process.terminate()
        raise
    finally:
        pool.shutdown()


def _call(start_method, function, arguments):
    """In the new process, which ends with this one.

    Its loading workers start as in this one, not by the slow 'spawn'.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.set_start_method(start_method, force=True)
    return function(*arguments)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
