"""Serves the calls of a worker on one rank, one after another, until the worker ends the rank.

Between two calls the rank waits for the socket, and not in MPI, which would take a whole core. The
main thread runs everything; other threads of a call use the slot alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import inspect
import math
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NoReturn

from daskbatch.errors import TaskError
from daskbatch.forking import after_fork
from daskbatch.serialization import pickling
from daskbatch.serialization.deferred_annotations import parameters_of
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.block import NO_LIMITS, BlockSpec, Link
from daskbatch.worker.execution.block_run import BlockRun
from daskbatch.worker.execution.capture import Capture
from daskbatch.worker.execution.initialized_function import InitializedFunction
from daskbatch.worker.execution.measures import MemberDetails, Usage, process_cpu
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.execution.task_context import TaskContext
from daskbatch.worker.isolation.own_memory import OwnMemory
from daskbatch.worker.isolation.process_state import ProcessState
from daskbatch.worker.isolation.unnamed_file import new_file, write_file
from daskbatch.worker.mpi.communicators import RankMpi
from daskbatch.worker.mpi.messages import MessageKind, MessageReader, RankMessage, send
from daskbatch.worker.mpi.rank_connection import SetAddress, connect, is_local
from daskbatch.worker.mpi.rank_function import call_object
from daskbatch.worker.mpi.request import RankRequest, as_block, map_file

#: The parameter by which a callable takes part in MPI.
_COMM = "comm"

#: The frames at the start of a traceback that belong to daskbatch.
_HIDDEN_FRAMES = 2

_libc = ctypes.CDLL(None)


class RankSlot:
    """The slots of the job, which a rank releases while it waits; a `WorkerSlot`.

    Any thread of the running call may use it.
    """

    def __init__(self, send_message: Callable[..., None], reader: MessageReader) -> None:
        self._send = send_message
        self._reader = reader
        self._sock = reader.sock
        self._lock = threading.Lock()
        #: How often the rank has begun to wait.
        self._waits = 0
        self._held = True

    def release(self) -> None:
        with self._lock:
            self._waits += 1
            self._held = False
            self._send(MessageKind.WAITING, (True, self._waits))

    def request(self) -> None:
        with self._lock:
            self._send(MessageKind.WAITING, (False, self._waits))

    def is_held(self) -> bool:
        with self._lock:
            while not self._held and self._has_arrived():
                try:
                    message = self._reader.read()
                except (OSError, EOFError):
                    os._exit(1)  # the worker has ended
                if message is not None and message.kind == MessageKind.SLOT:
                    self._held = message.fields == (self._waits,)
            return self._held

    def _has_arrived(self) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))


class RankRun(BlockRun):
    """The call of a job on this rank: a block with one member. The main thread runs it."""

    owns_process = True
    stores_values = False  # this process may end before the worker has its value
    _cpu_clock = staticmethod(process_cpu)

    def __init__(
        self,
        spec: BlockSpec,
        buffers: list[memoryview],
        place: str,
        mpi: RankMpi,
        state: ProcessState,
    ) -> None:
        self._memory = OwnMemory()
        super().__init__(spec, buffers)
        self._place = place
        self._mpi = mpi
        self._process_state = state

    @contextlib.contextmanager
    def _capturing(self) -> Iterator[Capture]:
        yield Capture(0)  # the worker reads what the process writes

    def _run(self, member: int, link: Link, capture: Capture) -> tuple[int, bytes | None]:
        try:
            self._process_state.enter(self.spec.limits.get(member, NO_LIMITS), self.spec.label(0))
        except (OSError, ValueError) as error:
            return Status.FAILED, self._packed_error(error, member, "")
        return super()._run(member, link, capture)

    def _details(self, member: int, seconds: float) -> MemberDetails:
        return MemberDetails(max_memory=self._memory.peak_of(seconds), pid=os.getpid())

    def usage(self) -> Usage:
        """Return what the call has used, once it is over."""
        details = self.log.details.get(0, MemberDetails())
        return Usage(self.log.cpu_seconds[0], details.max_memory, os.getpid())

    def _arguments(self, data: bytes, link: Link) -> tuple[Any, Any, list[Any]]:
        with pickling.within(None if self.spec.setup is None else self.spec.namespace):
            args, kwargs = pickling.unpack(data, link.values, self.inputs, copied=False)  # type: ignore[arg-type]
        return args, kwargs, []

    def _call(
        self, member: int, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        inner = function.function if isinstance(function, InitializedFunction) else function
        if inner is call_object:
            target, its_args, its_kwargs = args
            if _wants_comm(target, its_args, its_kwargs):
                comm = self._mpi.job_communicator()
                args = target, its_args, {**its_kwargs, _COMM: comm}
        elif _wants_comm(inner, args, kwargs):
            kwargs = {**kwargs, _COMM: self._mpi.job_communicator()}
        return function(*args, **kwargs)

    def _packed_error(self, error: BaseException, member: int, place: str) -> bytes:
        where = f"on {self._place}"
        if issubclass(type(error), TaskError):
            error.args = (f"{error} ({where})", *error.args[1:])
        else:
            with contextlib.suppress(Exception):
                error.add_note(f"raised {where}")
        return pack_error(error, self.spec.label(member), _HIDDEN_FRAMES, where)


def _wants_comm(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> bool:
    """Return whether a callable has a parameter for the communicator, which is not given.

    Raises
    ------
    TypeError
        The positional arguments reach that parameter.
    """
    if _COMM in kwargs or (isinstance(function, partial) and _COMM in function.keywords):
        return False
    try:
        found = _position_of_comm(function)
    except TypeError:  # it has no hash
        found = _position_of_comm.__wrapped__(function)
    if found is None:
        return False
    if len(args) > found:
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(
            f"{name}() receives its parameter comm as a keyword: put it behind the parameters "
            f"that the {len(args)} positional arguments are for"
        )
    return True


@lru_cache(maxsize=64)
def _position_of_comm(function: Callable[..., Any]) -> float | None:
    """Return how many positional arguments come before the communicator; None without one."""
    try:
        parameters = parameters_of(function)
    except Exception:  # it has no signature, or a strange one
        return None
    for position, (name, parameter) in enumerate(parameters.items()):
        if name == _COMM and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            return position
        if name == _COMM and parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            return math.inf
    return None


class RankServer:
    """Serves the calls of the worker on this rank. The main thread uses it.

    Parameters
    ----------
    address : SetAddress
        How to reach the worker.
    rank : int
        The rank.
    """

    def __init__(self, address: SetAddress, rank: int) -> None:
        self._place = f"rank {rank} of {address.size} on {socket.gethostname()}"
        self._mark = bytes.fromhex(address.mark)
        files = _redirect_streams()
        self._sock = connect(address, "rank", rank, files)
        if not is_local(self._sock):
            for stream, name in ((1, "stdout"), (2, "stderr")):
                with connect(address, name, rank) as output:
                    os.dup2(output.fileno(), stream)
        for file in files:
            os.close(file)
        self._reader = MessageReader(self._sock)
        self._send_lock = threading.Lock()
        self._process_state = ProcessState()
        self._mpi = RankMpi(address.size, lambda code: self._send(MessageKind.ABORTING, (code,)))
        #: The file with the data of the call, which other ranks of this host may open.
        self._shared_file: int | None = None
        after_fork(self._close_in_forked_process)

    def _send(self, kind: MessageKind, fields: tuple[Any, ...] = (), body: bytes = b"") -> None:
        with self._send_lock:
            send(self._sock, kind, fields, body)

    def serve(self) -> None:
        """Serve calls until the worker closes the connection."""
        while True:
            try:
                message = self._reader.read()
            except (OSError, EOFError):
                break
            if message is None:
                continue
            if message.kind == MessageKind.RUN:
                self._run(message)
                del message
        with contextlib.suppress(Exception):
            if self._mpi.in_use():
                self._mpi.finish()

    def _run(self, message: RankMessage) -> None:
        request = RankRequest(*message.fields[0])
        sys.path[:] = request.path
        spec, buffers = as_block(request, self._data_of(message, request))
        run = RankRun(spec, buffers, self._place, self._mpi, self._process_state)
        if request.context is not None:
            run.context = TaskContext(RankSlot(self._send, self._reader), *request.context)
        result = run()
        usage = run.usage()
        del run, spec, buffers
        self._flush()
        self._process_state.restore()
        if not is_local(self._sock):
            for file in self._process_state.files:
                os.write(file, self._mark)
        status, uses_mpi = result.statuses[0], self._mpi.in_use()
        fields = (status, uses_mpi, _has_children(), *usage)
        self._send(MessageKind.OVER, fields, result.values[0] or b"")
        if uses_mpi and status == Status.DONE:
            # If another rank has failed or does not use MPI, this does not return, and the worker
            # ends this rank.
            try:
                clean = self._mpi.check()
            except Exception:
                clean = False
            self._send(MessageKind.CHECKED, (clean,))

    def _data_of(self, message: RankMessage, request: RankRequest) -> memoryview:
        """Return the data of a call, from wherever it is."""
        if self._shared_file is not None:
            os.close(self._shared_file)
            self._shared_file = None
        source = message.fields[1]
        if source == "file":
            (file,) = message.files
            try:
                return map_file(file, request.size)
            finally:
                os.close(file)
        if source == "share":
            file = self._shared_file = new_file()
            write_file(file, message.body)
            self._send(MessageKind.SHARED, (f"/proc/{os.getpid()}/fd/{file}",))
            return map_file(file, request.size)
        if source == "inline":
            return message.body
        try:
            file = os.open(source, os.O_RDONLY)
        except OSError:
            self._send(MessageKind.NEED_DATA)
            answer = None
            while answer is None or answer.kind != MessageKind.DATA:
                answer = self._reader.read()
            return answer.body
        try:
            return map_file(file, request.size)
        finally:
            os.close(file)

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        _libc.fflush(None)

    def _close_in_forked_process(self) -> None:
        """Close what connects to the worker, in a process that a call has forked."""
        with contextlib.suppress(OSError):
            os.close(self._sock.detach())


def _has_children() -> bool:
    """Return whether a process that this one has started still runs."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (OSError, AttributeError):
        return False  # there is none
    if ended is None:
        return True
    # One has ended, and nobody has waited for it; there may be others.
    import psutil  # not at the top: a rank starts faster without it

    return any(each.status() != psutil.STATUS_ZOMBIE for each in psutil.Process().children())


def _redirect_streams() -> list[int]:
    """Have this process write to pipes; return their read ends, for the worker."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    files = []
    for stream in (1, 2):
        read, write = os.pipe()
        os.dup2(write, stream)
        os.close(write)
        files.append(read)
    return files


def serve(address: SetAddress, rank: int) -> NoReturn:
    """Run the server of a rank to its end; see `RankServer`."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        server = RankServer(address, rank)
        faulthandler.enable(2)
        server.serve()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        # Not by a return: the interpreter would wait for threads that calls have started.
        os._exit(code)
