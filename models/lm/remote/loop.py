"""One event loop for all calls of servers, in a thread of its own: it works where another loop is running already, as in a notebook."""

import asyncio
import concurrent.futures
import functools
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def background() -> asyncio.AbstractEventLoop:
    """The loop, which runs from its first use until the process ends."""
    return _of_process(os.getpid())  # a forked process has no threads of its parent


@functools.lru_cache(maxsize=1)
def _of_process(_: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="posterity calls of servers", daemon=True).start()
    return loop


def submit(call: Coroutine[Any, Any, Result]) -> "concurrent.futures.Future[Result]":
    """Starts a coroutine there; cancelling what this returns cancels it."""
    return asyncio.run_coroutine_threadsafe(call, background())


def wait(call: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine, run there; an interrupt here cancels it there."""
    under_way = submit(call)
    try:
        return under_way.result()
    except BaseException:
        under_way.cancel()
        raise
