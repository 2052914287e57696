"""Run many independent jobs, each at most once, on local processes or on a dask cluster.

Both are a `concurrent.futures.Executor`, so there is one loop. Results go to a `Store` as they
arrive; a job that raises, or that kills its process, is a failure with a reason and not the end.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from mlpot.data.store import Store
from mlpot.errors import InputError, MLPotError, require

#: What runs on a worker: a function at the top of a module, from a job to a result (JSON).
Task = Callable[[Any], dict[str, Any]]

# Jobs handed to dask at a time: enough for a large cluster, whose size changes as it queues.
_WINDOW = 1000

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run(
    task: Task,
    jobs: Mapping[str, Any],
    store: Store,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    first: Callable[[], None] | None = None,
    on_result: Callable[[bool], None] = lambda good: None,
) -> None:
    """Compute every job and put its result, or why it failed, into the store.

    Args:
        task: picklable; its exceptions are recorded, one line each.
        jobs: key -> picklable argument of the task.
        store: where results go; what it holds already is not looked at here.
        workers: local processes, with one thread each unless OMP_NUM_THREADS says otherwise; 0
            runs the jobs in this process, for a debugger.
        scheduler: address of a dask scheduler (tcp://host:port) to use instead.
        first: called once on a worker before all jobs; what it raises ends the run.
        on_result: called after each job with True for a result, False for a failure.

    Raises:
        InputError: no such scheduler, or no workers.
        MissingDependencyError: a scheduler is given and dask is absent.
        MLPotError: the workers cannot be started, or the cluster is lost.
    """
    if workers < 0:
        raise InputError(f"workers must not be negative, got {workers}")
    if not jobs:
        return
    open_pool = _cluster(scheduler) if scheduler else _processes(workers) if workers else _Here
    # in this process a job is done when it is handed over, and its result is kept before the next
    window = _WINDOW if scheduler else 2 * workers or 1
    waiting = deque(jobs.items())
    suspects: deque[tuple[str, Any]] = deque()  # their workers died; not all of them are guilty
    while waiting or suspects:
        with open_pool() as pool:
            if first is not None:
                _first(pool, first)
                first = None
            if suspects:
                # Alone in the pool, so that a break says who did it.
                _drain(pool, task, suspects, 1, store, on_result)
            else:
                suspects += _drain(pool, task, waiting, window, store, on_result)


def _first(pool: Executor, call: Callable[[], None]) -> None:
    try:
        pool.submit(call).result()
    except MLPotError:
        raise
    except BrokenExecutor as error:
        raise MLPotError(
            "the worker processes die as they start: a crash in the calculator's compiled code, "
            'or a script that starts workers outside of `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise MLPotError(
            f"the workers cannot run it ({one_line(error)}). On a cluster, its workers need mlpot "
            "and the calculator in their environment"
        ) from error


def _drain(
    pool: Executor,
    task: Task,
    waiting: deque[tuple[str, Any]],
    window: int,
    store: Store,
    on_result: Callable[[bool], None],
) -> list[tuple[str, Any]]:
    """Work until nothing waits or the pool breaks; returns the jobs whose workers died.

    With a window of 1 nobody else can have killed them: they are recorded as failed.
    """
    running: dict[Future, tuple[str, Any]] = {}
    lost: list[tuple[str, Any]] = []
    broken = False
    while running or (waiting and not broken):
        while waiting and len(running) < window and not broken:
            key, job = waiting.popleft()
            try:
                running[pool.submit(_attempt, task, job)] = (key, job)
            except BrokenExecutor:  # a worker died between two jobs
                broken = True
                lost.append((key, job))
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            key, job = running.pop(future)
            try:
                result, reason = future.result()
            except BrokenExecutor:
                broken = True
                lost.append((key, job))
                continue
            except CancelledError as error:
                raise MLPotError(
                    "the connection to the dask scheduler is lost. What was computed is kept: "
                    "start the cluster and give the same command again"
                ) from error
            except Exception as error:
                if type(error).__name__ == "KilledWorker":  # dask: and its neighbours with it
                    lost.append((key, job))
                    continue
                result, reason = None, one_line(error)
            _keep(store, key, result, reason, on_result)
    if window > 1:
        return lost
    for key, _ in lost:
        _keep(store, key, None, DIED, on_result)
    return []


#: Reason of a job that took its process with it.
DIED = "its worker process died: out of memory, or a crash in the calculator's compiled code"


def _keep(
    store: Store,
    key: str,
    result: dict[str, Any] | None,
    reason: str,
    on_result: Callable[[bool], None],
) -> None:
    if result is None:
        store.fail(key, reason)
    else:
        store.add(key, result)
    on_result(result is not None)


def _attempt(task: Task, job: Any) -> tuple[dict[str, Any] | None, str]:
    """On the worker: (result, "") or (None, reason). Exceptions of others may not unpickle."""
    try:
        return task(job), ""
    except Exception as error:
        return None, one_line(error)


def one_line(error: BaseException) -> str:
    """An exception as one line; ours speak for themselves."""
    message = " ".join(str(error).split())[:500]
    if isinstance(error, MLPotError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


# --- the executors -------------------------------------------------------------------------------


class _Here(Executor):
    """This process: a job is done when it has been submitted."""

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _processes(workers: int) -> Callable[[], AbstractContextManager[Executor]]:
    @contextmanager
    def open_pool() -> Iterator[Executor]:
        with _one_thread():
            # Not fork: threads of torch and OpenMP in the parent would leave the child hanging.
            pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=_on_start
            )
            try:
                yield pool
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return open_pool


def _cluster(scheduler: str) -> Callable[[], AbstractContextManager[Executor]]:
    @contextmanager
    def open_pool() -> Iterator[Executor]:
        distributed = require("distributed", "mlpot[dask]", "--scheduler")
        try:
            client = distributed.Client(scheduler, timeout=30, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(
                f"no dask scheduler answers at {scheduler} ({one_line(error)}). Start one with "
                "`dask scheduler`, or dask-jobqueue, and give the address it prints"
            ) from error
        with client:
            pool = client.get_executor(pure=False)
            try:
                yield pool
            finally:
                pool.shutdown(wait=False)  # cancels what an interruption has left

    return open_pool


@contextmanager
def _one_thread() -> Iterator[None]:
    """Libraries read these when they are loaded, so they must be set before a worker starts."""
    threads = os.environ.get(_THREADS[0], "1")
    absent = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(absent, threads))
    try:
        yield
    finally:
        for name in absent:
            os.environ.pop(name, None)


def _on_start() -> None:
    """Workers end with their parent, also when that is killed, and silently on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
