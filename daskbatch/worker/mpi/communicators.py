"""What a rank does with MPI around each job: communicators, and what jobs leave unfinished.

Nothing here imports MPI: a callable that does not use MPI must not pay for its start. An import
hook notices when the callable, or one of its modules, imports ``mpi4py.MPI``. The main thread of a
rank calls all methods.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib.abc
import importlib.machinery
import os
import sys
from array import array
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from daskbatch.errors import ProcessFailed

_MODULE = "mpi4py.MPI"

#: The files by which MPICH shares memory among the ranks of a host. MPICH removes them when MPI
#: ends, so that they would stay if the ranks were killed.
_SHARED_MEMORY_FILES = "/dev/shm/mpich_shm_*"

#: The operations that all ranks of a communicator call, by the names of their blocking forms. For
#: most of them mpi4py has others: for Python objects (``bcast``), and without waiting (``Ibcast``).
_COLLECTIVES = (
    *("Barrier", "Bcast", "Reduce", "Allreduce", "Reduce_scatter", "Reduce_scatter_block"),
    *("Gather", "Gatherv", "Scatter", "Scatterv", "Allgather", "Allgatherv"),
    *("Alltoall", "Alltoallv", "Alltoallw", "Scan", "Exscan", "Dup", "Split", "Split_type"),
)

#: Requests that have completed are forgotten whenever this many more have been made.
_MAX_FORGOTTEN_REQUESTS = 256


class _Finder(importlib.abc.MetaPathFinder):
    """Calls a function once a module has been imported, and retires. Used by one rank."""

    def __init__(self, name: str, imported: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._imported = imported

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module as other finders do, and have its loader call the function."""
        if fullname != self._name:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def loaded(self, module: ModuleType) -> None:
        """Called once the module has been executed."""
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self)
        self._imported(module)


class _Loader(importlib.abc.Loader):
    """Does what another loader does, then notifies a finder."""

    def __init__(self, loader: importlib.abc.Loader, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._finder.loaded(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class RankMpi:
    """The communicators of a rank, from one job to the next.

    Parameters
    ----------
    size : int
        The number of ranks.
    aborting : callable
        Called with the exit code when a job is about to call `Abort`.
    """

    def __init__(self, size: int, aborting: Callable[[int], None]) -> None:
        self._size = size
        self._aborting = aborting
        self._mpi: Any = None
        self._world: Any = None
        self._kind: Any = None
        #: All ranks, like `_world`; but jobs do not have it.
        self._checks: Any = None
        #: How many collective operations jobs have called on the communicator of all ranks.
        self._calls = _Calls()
        #: The communicator of the running job, if its callable has asked for one.
        self._comm: Any = None
        #: The receives and collective operations that the running job has begun.
        self._requests: list[Any] = []
        sys.meta_path.insert(0, _Finder(_MODULE, self._start))

    def _start(self, module: Any) -> None:
        """Prepare the communicators, once the ranks have started MPI."""
        if not module.Is_initialized() or module.Is_finalized():
            return  # the job starts MPI itself: its ranks are not used again
        if module.COMM_WORLD.Get_size() != self._size:
            raise ProcessFailed(
                f"the launcher has started {self._size} ranks, but mpi4py takes this one for a "
                f"job of {module.COMM_WORLD.Get_size()}: its MPI ({_version(module)}) is not the "
                "launcher's: set daskbatch.mpi-launcher to the launcher of this MPI"
            )
        try:
            self._checks = module.COMM_WORLD.Dup()
            self._kind = _make_kind(module, self._aborting, self._requests, self._calls)
            # Jobs use this object under the name `MPI.COMM_WORLD`; it is the same communicator.
            world = self._kind(module.COMM_WORLD)
            self._world = self._calls.world = module.COMM_WORLD = world
            self._checks.Barrier()
            # Now all ranks of this host have mapped the memory: no other process will.
            for path in _mapped_files(_SHARED_MEMORY_FILES):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        finally:
            self._mpi = module

    def in_use(self) -> bool:
        """Return whether this process has imported MPI, so that its ranks must be checked."""
        return _MODULE in sys.modules

    def job_communicator(self) -> Any:
        """Return a communicator for the callable of this job; all ranks call it.

        Raises
        ------
        ModuleNotFoundError
            mpi4py is not installed.
        """
        try:
            from mpi4py import MPI
        except ModuleNotFoundError as error:
            if error.name != "mpi4py":
                raise
            raise ModuleNotFoundError(
                "the callable takes part in MPI by its parameter `comm`, but mpi4py is not "
                "installed on the worker: pip install 'daskbatch[mpi]'",
                name="mpi4py",
            ) from None
        if not MPI.Is_initialized():
            MPI.Init_thread()
            self._start(MPI)
        self._comm = self._world.Dup()
        return self._comm

    def check(self) -> bool:
        """Return whether the next job may use this rank; all ranks call it after a job.

        Nothing that a job has sent may reach the next one. MPI keeps the order of the messages
        between two ranks. So when each rank has a message from each other rank, what these had
        sent before has arrived, too, and can be seen.
        """
        mpi, world = self._mpi, self._world
        if mpi is None or world is None or mpi.Is_finalized():
            return False
        # A rank may have left a collective operation that others have not called: one that sends
        # need not wait for the others.
        count = self._calls.count
        extremes = array("q", [count, -count])
        self._checks.Allreduce(mpi.IN_PLACE, [extremes, mpi.INT64_T], mpi.MAX)
        if extremes[0] != -extremes[1]:
            return False
        size = world.Get_size()
        ones, places = [1] * size, list(range(size))
        # If a library has left a collective operation on this communicator, which cannot be
        # counted, this does not return, and the worker ends the ranks after a while.
        world.Alltoallv(
            [bytearray(size), ones, places, mpi.BYTE], [bytearray(size), ones, places, mpi.BYTE]
        )
        comms = [world, mpi.COMM_SELF]
        comm, self._comm = self._comm, None
        if comm is not None and comm != mpi.COMM_NULL:
            comms.append(comm)
        unreceived = any(each.Iprobe(mpi.ANY_SOURCE, mpi.ANY_TAG) for each in comms)
        pending = any(each != mpi.REQUEST_NULL for each in self._requests)
        self._requests.clear()
        if unreceived or pending:
            return False
        if len(comms) > 2:
            comm.Free()
        world.Set_errhandler(mpi.ERRORS_RETURN)
        mpi.COMM_WORLD = world
        return True

    def finish(self) -> None:
        """End MPI, if it runs; all ranks call it."""
        mpi = self._mpi
        if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
            mpi.Finalize()


class _Calls:
    """Counts the collective operations on the communicator of all ranks. Used by one rank."""

    def __init__(self) -> None:
        self.world: Any = None
        self.count = 0


def _version(mpi: Any) -> str:
    """Return the name and the version of the MPI library, which may have a long text for it."""
    return " ".join(str(mpi.Get_library_version()).partition("\n")[0].partition(",")[0].split())


def _make_kind(
    mpi: Any, aborting: Callable[[int], None], requests: list[Any], calls: _Calls
) -> Any:
    """Return the class of the communicators of jobs."""

    def remember(request: Any) -> Any:
        if len(requests) >= _MAX_FORGOTTEN_REQUESTS:
            requests[:] = [each for each in requests if each != mpi.REQUEST_NULL]
        requests.append(request)
        return request

    class JobCommunicator(mpi.Intracomm):  # type: ignore[misc]
        """A communicator that reports `Abort`, and remembers what was begun on it."""

        def Abort(self, errorcode: int = 0) -> Any:
            aborting(errorcode)
            return super().Abort(errorcode)

        def Irecv(self, *args: Any, **kwargs: Any) -> Any:
            return remember(super().Irecv(*args, **kwargs))

        def irecv(self, *args: Any, **kwargs: Any) -> Any:
            return remember(super().irecv(*args, **kwargs))

        def __reduce__(self) -> Any:
            if self == mpi.COMM_WORLD:
                return _world_communicator, ()
            return mpi.Intracomm(self).__reduce__()  # it refuses

    def counting(method: Any, begins: bool) -> Any:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self is calls.world:
                calls.count += 1
            result = method(self, *args, **kwargs)
            return remember(result) if begins else result

        return call

    for name in _COLLECTIVES:
        for form in (name, name.lower(), f"I{name.lower()}"):
            if (method := getattr(mpi.Intracomm, form, None)) is not None:
                setattr(JobCommunicator, form, counting(method, form[0] == "I" and form != "Idup"))

    JobCommunicator.__name__ = JobCommunicator.__qualname__ = "Intracomm"
    return JobCommunicator


def _world_communicator() -> Any:
    from mpi4py import MPI

    return MPI.COMM_WORLD


def _mapped_files(pattern: str) -> list[str]:
    """Return the files of a pattern that this process has mapped."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
            mapped = {line.rstrip("\n").partition("/")[2] for line in lines}
    except OSError:
        return []
    return [path for path in glob.glob(pattern) if path[1:] in mapped]
