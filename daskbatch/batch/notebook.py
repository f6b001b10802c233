"""Ends the Batches of a notebook that a cell has replaced, and that have nothing left to do.

IPython keeps all that a cell has shown (``Out[3]``, ``_``), so a Batch that was shown would keep
its workers although its name stands for another one since the cell was run again. After each
cell, `_end_replaced` looks for them, and failures in them that the user has not looked at are told.
The main thread calls it.
"""

from __future__ import annotations

import builtins
import gc
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from daskbatch.batch.told_failures import tell_abandoned
from daskbatch.cluster.session import open_sessions


class NotebookBatch(Protocol):
    """The part of a Batch that is needed here."""

    def _is_idle(self) -> bool: ...
    def _abandon(self) -> None: ...


#: The open Batches; for each, whether a name in ``__main__`` has stood for it.
_batches: weakref.WeakKeyDictionary[NotebookBatch, bool] = weakref.WeakKeyDictionary()

#: The shells whose cells are followed.
_shells: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(batch: NotebookBatch) -> None:
    """End a Batch once a cell of a notebook has replaced it; outside of IPython do nothing."""
    get_shell: Callable[[], Any] | None = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_shell is None else get_shell()
    if shell is None:
        return
    _batches[batch] = False
    if shell not in _shells:
        _shells.add(shell)
        shell.events.register("post_run_cell", lambda *_: _after_cell(shell))


def _after_cell(shell: Any) -> None:
    _end_replaced(shell)
    tell_abandoned(open_sessions())


def _end_replaced(shell: Any) -> None:
    names = shell.user_ns
    history = names.get("Out", {})
    shown = {id(value) for value in [*history.values()]}
    bound = {
        id(value) for name, value in [*names.items()] if not name.startswith("_") and name != "Out"
    }
    for batch, was_bound in [*_batches.items()]:
        if id(batch) in bound:
            _batches[batch] = True
        elif was_bound and id(batch) in shown and batch._is_idle():
            known = [names, history, vars(shell.displayhook), vars(builtins)]
            known.append(getattr(shell, "user_ns_hidden", {}))
            if not _is_used_elsewhere(batch, known):
                del _batches[batch]
                batch._abandon()


def _is_used_elsewhere(batch: object, known: list[Any]) -> bool:
    """Return whether something else than IPython's history refers to a Batch."""
    allowed = {id(each) for each in known}
    return any(id(each) not in allowed and not _is_own(each) for each in gc.get_referrers(batch))


def _is_own(referrer: object) -> bool:
    """Return whether an object is a part of this search: a frame, or the list of Batches."""
    if isinstance(referrer, FrameType):
        return referrer.f_code.co_filename == __file__
    if type(referrer).__name__ == "ExecutionResult":  # what IPython has shown last
        return True
    return isinstance(referrer, (list, tuple)) and len(referrer) <= len(_batches) + 2
