"""The function of a task that runs a Python callable on every rank of a parallel job.

The record travels in place of the callable. A worker loads the record, but never the callable in
it: that happens in the ranks. Any number of threads may use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from daskbatch.serialization import pickling


class RankSettings(NamedTuple):
    """How the ranks of a job are started and run.

    Parameters
    ----------
    num_procs : int
        The number of ranks.
    cores : int
        The slots of each rank.
    cwd : str
        The working directory.
    env : tuple of (str, str)
        Added to the environment of the ranks.
    timeout : float, optional
        The time limit of the call. Seconds.
    fresh : bool
        Whether the ranks are new, and end with the job.
    launcher : str
        The setting ``daskbatch.mpi-launcher``.
    idle_timeout : float
        The setting ``daskbatch.rank-idle-timeout``. Seconds.
    """

    num_procs: int
    cores: int = 1
    cwd: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    timeout: float | None = None
    fresh: bool = False
    launcher: str = "auto"
    idle_timeout: float = 30.0


class PackedCall(NamedTuple):
    """A call whose function and arguments have not been unpickled.

    A worker must not unpickle them: the modules of the function may start MPI.

    Parameters
    ----------
    function : bytes
        The pickled function.
    setup : bytes, optional
        The pickled initializer and its arguments; see `initialized_function`.
    data : bytes
        The packed arguments.
    values : sequence of bytes or str
        For each placeholder a pickled value, or a text.
    buffers : sequence of bytes
        The contents of the large buffers.
    """

    function: bytes
    setup: bytes | None
    data: bytes
    values: Sequence[bytes | str] = ()
    buffers: Sequence[bytes | memoryview] = ()


class RankFunction:
    """A callable that runs on every rank, and how. Any number of threads may use it.

    Parameters
    ----------
    function : callable
        The callable, in the process of the client; None on a worker.
    settings : RankSettings
        How the ranks are started and run.
    data : bytes
        The pickled callable, on a worker.
    """

    __slots__ = ("data", "function", "settings")

    def __init__(
        self,
        function: Callable[..., Any] | None,
        settings: RankSettings,
        data: bytes = b"",
    ) -> None:
        self.function = function
        self.settings = settings
        self.data = data

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Not to be called: the run of its block gives it to `callable_job`."""
        raise TypeError("a function of ranks runs on ranks alone")

    def __reduce__(self) -> tuple[Any, ...]:
        data = pickling.dumps(self.function) if self.function is not None else self.data
        return RankFunction, (None, self.settings, data)


def call_object(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Call a callable that travels among its arguments, since it is not a plain function."""
    return function(*args, **kwargs)


class RankValue:
    """The value that a rank has returned, still pickled; it is loaded where it arrives.

    Parameters
    ----------
    data : bytes
        The pickled value.
    """

    __slots__ = ("_data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return pickling.loads, (bytes(self._data),)
