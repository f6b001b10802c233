"""Refuses a Batch that a module makes while a worker imports it for a task.

Any thread may call it.
"""

from __future__ import annotations

import inspect

from daskbatch.errors import LifecycleError
from daskbatch.serialization.loading import makes_copies


def require_not_loading() -> None:
    """Raise `LifecycleError` where a module that a task needs makes a Batch on its import."""
    if not makes_copies():
        return
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    name = "a module" if frame is None else f"the module {frame.f_globals.get('__name__')!r}"
    raise LifecycleError(
        f"{name} makes a Batch or an executor when it is imported, and a worker imports it to load "
        "a task's function or arguments: make the Batch in a function, or below "
        '`if __name__ == "__main__":`, so that importing the module starts nothing'
    )
