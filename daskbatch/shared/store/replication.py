"""Primary-backup replication: forwards changes to the backups, and builds new ones.

The scheme is that of Alsberg & Day (1976) and Budhiraja et al. (The primary-backup approach,
1993). The scheduler's plugin alone decides which replica is the primary and which are backups,
by layouts with increasing numbers, the epochs (`registry`). The rules:

- The primary makes each change on all backups, then for itself, then replies.
- A backup that does not answer is removed from the scheduler's layout before a change that it
  lacks is acknowledged.
- A backup refuses changes of an epoch before its own. So a primary that was replaced can no longer
  acknowledge anything.
- A new backup receives all changes from the moment when its copying begins, and the older values
  piece by piece; it counts once the scheduler has it in a layout.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Sequence
from time import sleep
from typing import Any, Protocol

from daskbatch.shared.data import routes
from daskbatch.shared.data.codec import prepare_to_send
from daskbatch.shared.data.messages import Layout, NotServing, Replica, Request, decode_error
from daskbatch.shared.relayed import is_relayed, start_relaying
from daskbatch.shared.rpc.answer import FAILED
from daskbatch.shared.rpc.client import RequestFailed, RpcClient
from daskbatch.shared.store.operations import FOLLOW, WITH_VALUE, Change
from daskbatch.shared.store.shard import Backups
from daskbatch.shared.store.spill import StoredValue
from daskbatch.timeouts import Deadline
from daskbatch.worker.handshake import NotReachable, check_reachable

#: How long a backup may take to make changes; then the primary has it removed.
_FOLLOW_TIMEOUT_SECONDS = 10.0

#: How often the primary tries meanwhile whether the network leads to the backup.
_REACH_CHECK_SECONDS = 1.0

#: How much is copied to a new backup at once; clients cannot write meanwhile.
_COPY_PIECE_BYTES = 4 << 20

#: How often, and at what interval, the primary asks the scheduler whether a new backup counts.
_MAX_LAYOUT_ATTEMPTS, _LAYOUT_RETRY_SECONDS = 30, 1.0


#: Has the scheduler pass a request on to a replica; returns status and result.
Relay = Callable[[Replica, Request], tuple[int, Any]]


class Replicated(Protocol):
    """What has replicas: a `Shard` or a `QueueState`. Any number of threads may use it."""

    #: Held while anything changes.
    write_lock: threading.Lock
    backups: Backups | None
    #: Whether this replica is the primary.
    serves: bool

    def first_changes(self) -> list[Change]:
        """Return what a new backup is told before it receives any value."""

    def values(self) -> list[StoredValue]:
        """Return all values."""

    def copy(self, stored: StoredValue) -> Change | None:
        """Return the change that gives a new backup a value; None if it is no longer there."""


class _FollowTimeout(Exception):
    """A backup has not made changes in time."""


class _Backup:
    """The primary's connection to a backup on another worker."""

    def __init__(
        self, replica: Replica, tls_context: ssl.SSLContext | None, relay: Relay | None
    ) -> None:
        self.replica = replica
        self._tls_context = tls_context
        self._relay = relay
        self._client = RpcClient()

    def follow(
        self, epoch: int, changes: Sequence[Change], client_id: bytes, seq: int, reply: Any
    ) -> None:
        """Have the backup make changes.

        Raises
        ------
        OSError
            The backup is gone, or does not answer in time.
        RequestFailed
            The backup has refused the changes, or failed to make them.
        """
        deadline = Deadline(_FOLLOW_TIMEOUT_SECONDS)
        arguments = epoch, changes, client_id, seq, reply
        server = self.replica.server
        next_check = Deadline(_REACH_CHECK_SECONDS)

        def idle_check() -> None:
            nonlocal next_check
            if deadline.passed:
                raise _FollowTimeout
            if next_check.passed:
                # A firewall may have come in between.
                check_reachable(server)
                next_check = Deadline(_REACH_CHECK_SECONDS)

        self._client.seq += 1  # the backup makes the changes once, even if they come on both ways
        if self._relay is None or not is_relayed(server):
            try:
                self._client.call(
                    server, self._tls_context, FOLLOW.name, 0.0, arguments, idle_check
                )
                return
            except _FollowTimeout:
                raise TimeoutError(f"{self.replica.worker} does not answer") from None
            except NotReachable:
                # A firewall may be in between.
                if self._relay is None:
                    raise
                start_relaying(server)
        self._follow_by_scheduler(self._relay, arguments)

    def _follow_by_scheduler(self, relay: Relay, arguments: tuple[Any, ...]) -> None:
        """Have the scheduler pass changes on to a backup that cannot be reached from here."""
        try:
            sender = self._client
            request = Request(FOLLOW.name, sender.client_id, sender.seq, 0.0, arguments)
            status, result = relay(self.replica, request)
        except Exception as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        if status == FAILED:
            raise RequestFailed(decode_error(result))

    def close(self) -> None:
        self._client.close()


class Replicator:
    """The backups of a shard; implements `shard.Backups`.

    Any number of threads may use it. The caller of `send` holds the shard's `write_lock`.

    Parameters
    ----------
    shard : Replicated
        The shard here, or the queue.
    tls_context : ssl.SSLContext, optional
        The certificates for connections to other workers.
    call_scheduler : callable
        Calls a route of the scheduler for this shard, and returns the current layout.
    relay : callable, optional
        Has the scheduler pass a request on to a replica; returns status and result.
    """

    def __init__(
        self,
        shard: Replicated,
        tls_context: ssl.SSLContext | None,
        call_scheduler: Callable[..., Layout],
        relay: Relay | None = None,
    ) -> None:
        self._relay = relay
        self._shard = shard
        self._tls_context = tls_context
        self._call_scheduler = call_scheduler
        #: Dask's key of this replica's actor.
        self._own_key = ""
        self.epoch = 0
        #: The last layout with which this replica must not begin to serve.
        self._stopped_epoch = -1
        self._backups: list[_Backup] = []
        #: The backup that is being built, which does not count yet.
        self._joining: _Backup | None = None
        self._lock = threading.RLock()

    # -- layouts --------------------------------------------------------------------------

    def apply_layout(self, layout: Layout, own_key: str) -> None:
        """Adopt a layout, unless a newer one was adopted before.

        Parameters
        ----------
        layout : Layout
            Which replicas have the shard.
        own_key : str
            Dask's key of this replica's actor.
        """
        with self._lock:
            if layout.epoch < self.epoch:
                return
            self.epoch = layout.epoch
            self._own_key = own_key
            is_primary = bool(layout.replicas) and layout.replicas[0].key == own_key
            if not is_primary or layout.epoch > self._stopped_epoch:
                self._shard.serves = is_primary
            others = [each for each in layout.replicas if each.key != own_key]
            unused = {each.replica.key: each for each in self._backups}
            joining = self._joining
            if joining is not None:
                unused[joining.replica.key] = joining
            if not is_primary:
                others = []
            self._backups = [
                unused.pop(each.key) if each.key in unused else self._backup(each)
                for each in others
            ]
            if joining is not None and joining.replica.key in unused and is_primary:
                del unused[joining.replica.key]  # it is still being built
            else:
                self._joining = None
        for each in unused.values():
            each.close()

    def stop(self, epoch: int) -> None:
        """Let no layout up to this epoch begin to serve: it may arrive after the shard has stopped.

        Another replica may serve the shard by then.
        """
        with self._lock:
            self._stopped_epoch = max(self._stopped_epoch, epoch)

    def _backup(self, replica: Replica) -> _Backup:
        return _Backup(replica, self._tls_context, self._relay)

    # -- changes --------------------------------------------------------------------------

    def send(self, changes: Sequence[Change], client_id: bytes, seq: int, reply: Any) -> None:
        """Make changes on all backups; the caller holds the shard's `write_lock`."""
        joining = self._joining
        if not self._backups and joining is None:
            return
        sent = [_prepare_change(each) for each in changes]
        while True:
            backup = None
            try:
                for backup in list(self._backups):
                    backup.follow(self.epoch, sent, client_id, seq, reply)
                break
            except RequestFailed as failed:
                if not isinstance(failed.args[0], NotServing):
                    raise failed.args[0] from None
                # The backup follows another primary, or has received a newer layout before this
                # replica has.
                assert backup is not None
                if not self._refresh_layout():
                    self._remove(backup)
            except OSError:
                assert backup is not None
                self._remove(backup)
        if joining is not None:
            try:
                joining.follow(self.epoch, sent, client_id, seq, reply)
            except (OSError, RequestFailed):
                self._joining = None

    def _refresh_layout(self) -> bool:
        """Adopt the scheduler's layout; returns whether it is a new one.

        Raises
        ------
        NotServing
            Another replica is the primary now.
        """
        before = self.epoch
        layout = self._call_scheduler(routes.AWAIT_LAYOUT, epoch=before, seconds=0.0)
        self.apply_layout(layout, self._own_key)
        if not self._shard.serves:
            raise NotServing
        return self.epoch > before

    def _remove(self, backup: _Backup) -> None:
        """Have the scheduler remove a backup from the layout.

        Raises
        ------
        NotServing
            This replica is no longer the primary, and may not do that.
        """
        backup.close()
        layout = self._call_scheduler(
            routes.REMOVE_BACKUP, epoch=self.epoch, key=backup.replica.key
        )
        self.apply_layout(layout, self._own_key)
        if not self._shard.serves:
            raise NotServing

    # -- a new backup ---------------------------------------------------------------------

    def add_backup(self, make: Callable[[], Replica]) -> None:
        """Build one more backup, on another worker.

        Parameters
        ----------
        make : callable
            Makes an empty replica there, and returns it.

        Raises
        ------
        Exception
            The backup could not be built.
        """
        backup = self._backup(make())
        try:
            with self._shard.write_lock:
                if not self._shard.serves:
                    raise NotServing
                # From here on the backup receives all changes.
                values = self._shard.values()
                backup.follow(self.epoch, self._shard.first_changes(), b"", 0, None)
                self._joining = backup
            piece: list[StoredValue] = []
            room = _COPY_PIECE_BYTES
            for stored in values:
                piece.append(stored)
                room -= stored.size
                if room < 0:
                    self._copy(backup, piece)
                    piece, room = [], _COPY_PIECE_BYTES
            self._copy(backup, piece)
            with self._shard.write_lock:
                if self._joining is not backup:
                    raise NotServing
                self._join(backup.replica)
        except BaseException:
            with self._shard.write_lock:
                if self._joining is backup:
                    self._joining = None
            backup.close()
            raise

    def _join(self, replica: Replica) -> None:
        """Have the scheduler add a new backup to the layout; no client may write meanwhile."""
        try:
            layout = self._call_scheduler(routes.ADD_BACKUP, epoch=self.epoch, replica=replica)
        except NotServing:
            raise
        except Exception:
            # The scheduler may have added it, and the answer was lost.
            layout = self._layout_after_error()
        self.apply_layout(layout, self._own_key)

    def _layout_after_error(self) -> Layout:
        """Ask the scheduler for the layout, until it answers; stop serving if it never does."""
        for attempt in range(_MAX_LAYOUT_ATTEMPTS):
            try:
                return self._call_scheduler(routes.AWAIT_LAYOUT, epoch=self.epoch, seconds=0.0)
            except NotServing:
                raise
            except Exception:
                if attempt == _MAX_LAYOUT_ATTEMPTS - 1:
                    # Without a primary nothing is lost; a primary that does not send its changes
                    # to a backup of the layout could lose some.
                    self._shard.serves = False
                    raise
                sleep(_LAYOUT_RETRY_SECONDS)
        raise AssertionError

    def _copy(self, backup: _Backup, piece: Sequence[StoredValue]) -> None:
        """Send some of the older values to a new backup."""
        with self._shard.write_lock:
            if self._joining is not backup:
                raise NotServing
            # The backup has received later writes and removals as changes.
            copies = [self._shard.copy(stored) for stored in piece]
            changes = [change for change in copies if change is not None]
            if changes:
                backup.follow(self.epoch, changes, b"", 0, None)

    def close(self) -> None:
        """Close the connections to the backups."""
        for each in self._backups:
            each.close()


def _prepare_change(change: Change) -> Change:
    """Return a change in the form in which it is sent without a copy of its value."""
    if change[0] not in WITH_VALUE:
        return change
    return (*change[:2], prepare_to_send(change[2]), *change[3:])
