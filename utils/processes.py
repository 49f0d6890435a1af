"""A function in a process of its own: its memory is fresh, and its death is not ours."""
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

PATIENCE = 10   # seconds that an interrupted process gets to end by itself


def call_in_new_process(function: Callable, *arguments):
    """function(*arguments) in a new Python process; returns or raises what it does.

    function and arguments can be pickled. Raises BrokenProcessPool where the process was killed.
    """
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'))
    try:
        return pool.submit(function, *arguments).result()
    except KeyboardInterrupt:       # Ctrl-C reaches the new process too, kill -INT does not
        pool.shutdown(wait=False)
        for process in multiprocessing.active_children():
            process.join(PATIENCE)
            process.terminate()
        raise
    finally:
        pool.shutdown()
