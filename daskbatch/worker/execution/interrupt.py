"""Calls functions so that another thread can stop the one that runs now.

Does not know tasks, nor when or why one is stopped. It relies on CPython: on the lock that
lets one thread at a time run Python, and on the few places where a thread looks for an
exception that another thread has thrown at it.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from threading import Lock, get_ident
from time import sleep
from typing import Any

# A function object of our own: `ctypes.pythonapi` is one for the whole process, and so are
# the argument types that somebody sets there.
_throw = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)

#: Thrown, it takes back what was thrown and is not raised yet.
_NOTHING: Any = ctypes.py_object()

#: Seconds between two looks at whether a stop() in another thread is over.
_PAUSE = 1e-5

#: Threads that are being started. Up to CPython 3.11 one has, until it runs, the number of the
#: thread that starts it, and is found first by it: thrown at, it would end before it has begun,
#: and whoever starts it wait for ever.
_starting: Mapping[Any, Any] = (
    threading._limbo if sys.version_info < (3, 12) else {}  # type: ignore[attr-defined]
)

#: How often is looked whether they run: one that never will is not waited for.
_LOOKS = 2_000


class Stopped(BaseException):
    """The call was stopped; raised in the function, and by what called it."""


class _Over(BaseException):
    """What `call` raises for itself: the function has returned; nothing is thrown any more."""


# Why a Stopped cannot hit anything but the function, or be left over for what comes next:
#
# 1. CPython raises a thrown exception only at certain instructions: where a function or a
#    generator is entered (RESUME), at the end of a call (CALL, CALL_FUNCTION_EX) and at a jump
#    backward. Not when a function returns, an exception handler is entered, an attribute of a
#    slot is read or written, or at a jump forward.
# 2. `call` opens (`_number = number`) as the first thing inside of its `try`, and closes
#    (`_number = None`) as the first thing after the function, whether it returned or raised.
#    The only such instruction between the two is the call of the function: what is raised at its
#    end, or inside of it, goes to the handler, which closes.
# 3. stop() sets `_stopping`, then reads `_number`; `call` writes `_number`, then reads
#    `_stopping`, then `_fired`. So either stop() sees that the call has closed and throws nothing,
#    or `call` sees that somebody throws, or has thrown. If neither, `call` ends: there is no such
#    instruction before its end, and nothing that could be raised there.
# 4. Else two exceptions may still come: one that was thrown before, and the one of a stop() under
#    way (one: they take turns, and the next one sees that the call has closed). The first is
#    taken back before such an instruction is passed. The second comes inside of the outer `try`
#    of the two, is caught there, and costs another round; nothing is left that could be raised
#    at the jump to that round. The inner `try` is for the main thread, where Ctrl+C may come
#    while something else is still to come: the jump after that is inside of the outer one.
#
# It matters where the compiler puts such instructions, so `call` is written as it is:
# - no with-statement, no method of its own: each would be a place to be hit before any `try`;
# - what is left to do once a Stopped may be on its way is done inside of the handler, to which a
#   function that has returned raises: from 3.12 on, handlers are at the end of the code, so that
#   the way out of one is a jump backward;
# - no `while condition` inside of the `try`: from 3.12 on its jump backward is not part of it, and
#   in 3.13 that shows (python/cpython#130279); so it does for a `try` of the function called.
class Interruption:
    """Calls functions in one thread so that other threads can stop them.

    Any thread may make it. One call at a time: it cannot be called by what it calls.
    """

    __slots__ = ("_fired", "_lock", "_number", "_stopping", "_thread", "thrown")

    def __init__(self) -> None:
        self._lock = Lock()  # whoever stops has it; `call` never takes it
        self._thread = 0
        self._number: int | None = None  # of the call that may be thrown at
        self._stopping = False  # somebody is in stop()
        self._fired = False  # something was thrown at this call
        #: What `stop` throws. To be changed only while no call runs.
        self.thrown: type[Stopped] = Stopped

    def call(
        self,
        number: int,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Call the function in this thread: return what it returns, raise what it raises.

        Raises `Stopped` instead if `stop` returned True for this call, whatever the function
        made of that. What the function raised then, if anything else, is its cause.

        Parameters
        ----------
        number : int
            Says to `stop` which call this is: no two calls in a row have the same.
        function : callable
            What to call with the arguments `args` and `kwargs`.
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
                            _throw(self._thread, _NOTHING)
                            while True:
                                if not self._stopping:
                                    break
                                sleep(_PAUSE)
                            # To take back would be enough. But CPython up to 3.12 then looks for
                            # what was thrown, in each thread and all the time, until it is there.
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
        # Nothing can come any more: from here on it is ordinary code.
        try:
            fired, self._fired = self._fired, False
            returned = isinstance(error, _Over)
            if fired and not isinstance(error, Stopped):
                raise Stopped from None if returned else error
            if not returned:
                raise error  # if it is the Stopped: its traceback says where the function was
            return value
        finally:
            del error  # its traceback has this frame, which would have it

    def stop(self, number: int | None = None) -> bool:
        """Stop the call that runs now; from any thread.

        C code is stopped when it returns to Python. A function may also catch the `Stopped`,
        or it may come inside of a finalizer, which ignores exceptions: then the function goes on.
        To stop the same call again throws once more.

        Parameters
        ----------
        number : int, optional
            Only if it is this call that runs.

        Returns
        -------
        bool
            True if the call will end in `Stopped`; False if no such call runs: it has not begun,
            or it is over.
        """
        with self._lock:
            try:
                self._stopping = True
                looks = _LOOKS
                while _starting and looks:
                    looks -= 1
                    sleep(_PAUSE)
                # From the last look to the throw no other thread comes: see 1.
                running = self._number
                if running is None or (number is not None and number != running):
                    return False
                self._fired = True
                _throw(self._thread, self.thrown)
                return True
            finally:
                self._stopping = False
