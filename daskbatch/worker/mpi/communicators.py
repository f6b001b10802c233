"""What a rank does with MPI around each job: communicators, and what jobs leave unfinished.

Nothing here imports MPI: a callable that does not use MPI must not pay for its start. An import
hook notices when the callable, or one of its modules, imports ``mpi4py.MPI``. The main thread of a
rank calls all methods.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_MODULE = "mpi4py.MPI"

#: The files by which MPICH shares memory among the ranks of a host. MPICH removes them when MPI
#: ends, so that they would stay if the ranks were killed.
_SHARED_MEMORY_FILES = "/dev/shm/mpich_shm_*"

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
    aborting : callable
        Called with the exit code when a job is about to call `Abort`.
    """

    def __init__(self, aborting: Callable[[int], None]) -> None:
        self._aborting = aborting
        self._mpi: Any = None
        self._world: Any = None
        self._kind: Any = None
        #: The communicator of the running job, if its callable has asked for one.
        self._comm: Any = None
        #: The receives that the running job has begun on the communicator of all ranks.
        self._requests: list[Any] = []
        sys.meta_path.insert(0, _Finder(_MODULE, self._start))

    def _start(self, module: Any) -> None:
        """Prepare the communicators, once the ranks have started MPI."""
        if not module.Is_initialized() or module.Is_finalized():
            return  # the job starts MPI itself: its ranks are not used again
        try:
            self._kind = _make_kind(module, self._aborting, self._requests)
            # Jobs use this object under the name `MPI.COMM_WORLD`; it is the same communicator.
            self._world = module.COMM_WORLD = self._kind(module.COMM_WORLD)
            self._world.Barrier()
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
        size = world.Get_size()
        ones, places = [1] * size, list(range(size))
        # If the ranks have not called the same collective operations on this communicator, this
        # does not return, and the worker ends the ranks.
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


def _make_kind(mpi: Any, aborting: Callable[[int], None], requests: list[Any]) -> Any:
    """Return the class of the communicators of jobs."""

    def remember(request: Any) -> Any:
        if len(requests) >= _MAX_FORGOTTEN_REQUESTS:
            requests[:] = [each for each in requests if each != mpi.REQUEST_NULL]
        requests.append(request)
        return request

    class JobCommunicator(mpi.Intracomm):  # type: ignore[misc]
        """A communicator that reports `Abort`, and remembers which receives were begun."""

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
