"""Blocking work beside the event loop, in a thread that nobody waits for once its result isn't wanted any more.

The loop's own threads are waited for at the end of the program: a network folder or a name server that hangs would
keep it from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["apart"]

P = ParamSpec("P")
T = TypeVar("T")


async def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the function returns or raises; a cancellation leaves it behind.

    Args:
        function: Blocks, and touches nothing that others use.
        *args: For it.
        **kwargs: For it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(captured: _Captured, result: list[T]) -> None:
        if future.done():
            return
        if captured.exc is not None:
            future.set_exception(captured.exc)
        else:
            future.set_result(result[0])

    def work() -> None:
        captured, result = _Captured(), []
        with captured:
            result.append(function(*args, **kwargs))
        # The loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, captured, result)

    threading.Thread(target=work, name="tool", daemon=True).start()
    return await future


class _Captured:
    """Keeps whatever comes out of a thread for whoever waits for it."""

    def __init__(self) -> None:
        self.exc: BaseException | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> bool:
        self.exc = exc
        return True
