"""Calls functions so that another thread can stop the function that runs now.

This relies on CPython: on the lock that lets one thread at a time run Python, and on the few
places where a thread looks for an exception that another thread has thrown at it
(`PyThreadState_SetAsyncExc`).
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from threading import Lock, get_ident
from time import sleep
from typing import Any

from daskbatch.serialization.safe_text import Interruption
from daskbatch.uninterrupted import uninterrupted_threads

# A separate function object: `ctypes.pythonapi` is shared by the whole process, and so are
# the argument types that other modules may set there.
_throw = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)

#: To throw this (NULL) cancels an exception that was thrown and has not been raised yet.
_NO_EXCEPTION: Any = ctypes.py_object()

#: How often to look whether a stop() in another thread is over.
_POLL_INTERVAL_SECONDS = 1e-5

#: Threads that are being started. Up to CPython 3.11 a new thread has, until it runs, the number
#: of the thread that starts it, and is found first by this number. An exception that is thrown at
#: this number would end the new thread before it has begun, and the thread that starts it would
#: wait for ever.
_starting: Mapping[Any, Any] = (
    threading._limbo if sys.version_info < (3, 12) else {}  # type: ignore[attr-defined]
)

#: How often stop() looks whether these run by now. Then it continues: one may never run.
_MAX_STARTING_POLLS = 2_000


class Stopped(Interruption):
    """The call was stopped; raised in the function, and by `StoppableCaller.call`."""


class _Over(BaseException):
    """Raised and caught by `call` itself: the function has returned; nothing is to be thrown."""


# Why a Stopped can only be raised inside of the function, and never later, in other code:
#
# 1. CPython raises a thrown exception only at certain instructions: where a function or a
#    generator is entered (RESUME), at the end of a call (CALL, CALL_FUNCTION_EX) and at a jump
#    backward. It does not raise one when a function returns, when an exception handler is
#    entered, when an attribute of a slot is read or written, or at a jump forward.
# 2. `call` opens (`_number = number`) as the first thing inside of its `try`, and closes
#    (`_number = None`) as the first thing after the function has returned or raised. The only
#    such instruction between the two is the call of the function. An exception that is raised at
#    the end of this call, or inside of the function, goes to the handler, which closes.
# 3. stop() sets `_stopping`, then reads `_number`; `call` writes `_number`, then reads
#    `_stopping`, then `_fired`. So either stop() sees that the call has closed, and throws
#    nothing; or `call` sees that a stop() throws, or has thrown. If neither is so, `call` ends:
#    there is no such instruction before its end, and no exception that could be raised there.
# 4. Otherwise two exceptions may still come: one that was thrown before, and the one of a stop()
#    that runs at the moment. (There is only one: calls of stop() take turns, and the next one
#    sees that the call has closed.) The first exception is cancelled before such an instruction
#    is passed. The second one is raised inside of the outer `try` of the two, is caught there,
#    and causes another round; then no exception is left that could be raised at the jump to that
#    round. The inner `try` is for the main thread, where Ctrl+C may come while another exception
#    is still to come: the jump after that is inside of the outer `try`.
#
# It matters where the compiler puts such instructions, so `call` is written as it is:
# - It has no with-statement, and calls no other method of this class: an exception could be
#   raised at each of these before any `try`.
# - What must be done once a Stopped may be on its way is done inside of the handler; `call`
#   raises `_Over` to get there after a function that has returned. The reason: from 3.12 on,
#   handlers are at the end of the code, so that the way out of a handler is a jump backward.
# - It has no `while condition` inside of a `try`: from 3.12 on, the jump backward of such a loop
#   is not part of the `try`, and in 3.13 that has an effect (python/cpython#130279). The same
#   holds for a `try` of the function that is called.
class StoppableCaller:
    """Calls functions in one thread so that other threads can stop them.

    Any thread may make it. One thread calls `call`, for one function at a time: a function
    must not use the caller that calls it. Any other thread may call `stop`.
    """

    __slots__ = ("_fired", "_lock", "_number", "_stopping", "_thread", "thrown")

    def __init__(self) -> None:
        self._lock = Lock()  # held by stop(); `call` never acquires it
        self._thread = 0
        self._number: int | None = None  # the number of the call that may be stopped
        self._stopping = False  # a thread is in stop()
        self._fired = False  # an exception was thrown at this call
        #: The exception that `stop` throws. It may be changed only while no call runs.
        self.thrown: type[Stopped] = Stopped

    def call(
        self,
        number: int,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Call the function in this thread: return what it returns, raise what it raises.

        Parameters
        ----------
        number : int
            Identifies the call for `stop`; two successive calls must have different numbers.
        function : callable
            The function.
        args, kwargs : sequence, mapping
            Its arguments.

        Raises
        ------
        Stopped
            `stop` has returned True for this call, whatever the function did then. If the
            function has raised another exception, that is the cause.
        """
        self._thread = get_ident()
        try:
            self._number = number
            value = function(*args, **kwargs)
            self._number = None
            if not (self._stopping or self._fired):
                return value
            raise _Over
        except BaseException as raised:
            self._number = None
            if not (self._stopping or self._fired):
                raise
            error = raised
            while True:
                try:
                    while True:
                        try:
                            _throw(self._thread, _NO_EXCEPTION)
                            while True:
                                if not self._stopping:
                                    break
                                sleep(_POLL_INTERVAL_SECONDS)
                            # To cancel it would be enough. But CPython up to 3.12 then looks for
                            # a thrown exception, in each thread and at each such instruction,
                            # until there is one.
                            while True:
                                _throw(self._thread, _Over)
                        except (_Over, Stopped):
                            raise
                        except BaseException as late:
                            error = late
                except _Over:
                    break
                except Stopped:
                    pass
        # No exception can come any longer: from here on this is ordinary code.
        try:
            fired, self._fired = self._fired, False
            # Not `isinstance`: it looks up `__class__`, which an exception may define.
            returned = type(error) is _Over
            if fired and not issubclass(type(error), Stopped):
                raise Stopped from None if returned else error
            if not returned:
                raise error  # a Stopped: its traceback shows where the function was
            return value
        finally:
            del error  # else a cycle: its traceback has this frame, and this frame has it

    def stop(self, number: int | None = None) -> bool:
        """Stop the call that runs now; from any thread.

        C code is stopped when it returns to Python. The function continues if it catches the
        `Stopped`, or if that is raised inside of a finalizer, which ignores exceptions; or if the
        thread must not be interrupted at this moment (`daskbatch.uninterrupted`). To call this
        again for the same call throws once more.

        Parameters
        ----------
        number : int, optional
            Stop the call only if it has this number.

        Returns
        -------
        bool
            True if the call will end in `Stopped`; False if this call does not run: it has not
            begun, or it is over.
        """
        with self._lock:
            try:
                self._stopping = True
                polls = _MAX_STARTING_POLLS
                while _starting and polls:
                    polls -= 1
                    sleep(_POLL_INTERVAL_SECONDS)
                # No other thread can run between the last look and the throw: see 1.
                running = self._number
                if running is None or (number is not None and number != running):
                    return False
                self._fired = True
                # Not by a call, at which another thread could run.
                if self._thread not in uninterrupted_threads:
                    _throw(self._thread, self.thrown)
                return True
            finally:
                self._stopping = False
