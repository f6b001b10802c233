"""Has the copies of a shard follow it, and new ones made where there are too few.

Does not know what is in the shard, nor who is to have copies: that is for the scheduler to say,
with which this stays in agreement. A copy that does not answer is struck off there first; only
then may anything be told as done that it has not.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import Any

from daskbatch.shared.data.codec import to_send
from daskbatch.shared.data.messages import Layout, NotServing, Replica
from daskbatch.shared.rpc.client import RequestFailed, RpcClient
from daskbatch.shared.store.shard import Change, Shard

#: How long a copy may take to follow, before it is struck off. Seconds.
_PATIENCE = 10.0

#: So much is copied at once while nobody can write. Bytes.
_PIECE = 4 << 20

#: How often it is asked, and with what pause, whether a copy counts. Seconds.
_ATTEMPTS, _PAUSE = 30, 1.0


class _Late(Exception):
    pass


class _Follower:
    """A copy on another worker."""

    def __init__(self, member: Replica, context: ssl.SSLContext | None) -> None:
        self.member = member
        self._context = context
        self._lane = RpcClient()

    def call(self, operation: str, *arguments: Any) -> Any:
        """Have it do something.

        Raises
        ------
        OSError
            It is gone, or does not answer.
        Failed
            It could not be done there.
        """
        end = monotonic() + _PATIENCE

        def idle() -> None:
            if monotonic() > end:
                raise _Late

        try:
            return self._lane.call(self.member.door, self._context, operation, 0.0, arguments, idle)
        except _Late:
            raise TimeoutError(f"{self.member.worker} does not answer") from None

    def close(self) -> None:
        self._lane.close()


class Replicator:
    """The copies of a shard; implements `shard.Copies`.

    Parameters
    ----------
    shard : Shard
        What is copied.
    context : ssl.SSLContext, optional
        What it takes to go to the others.
    ask : callable
        Asks the scheduler: gives the layout that holds.
    """

    def __init__(
        self,
        shard: Shard,
        context: ssl.SSLContext | None,
        ask: Callable[..., Layout],
    ) -> None:
        self._shard = shard
        self._context = context
        self._ask = ask
        self._me = ""
        self.epoch = 0
        self._followers: list[_Follower] = []
        #: Is being made, and does not count yet.
        self._recruit: _Follower | None = None
        self._lock = threading.RLock()

    # -- what the scheduler says ----------------------------------------------------------

    def take(self, layout: Layout, me: str) -> None:
        """Do as a layout says, if it is newer than what is known.

        Parameters
        ----------
        layout : Layout
            Who has the shard.
        me : str
            The key of the actor that is here.
        """
        with self._lock:
            if layout.epoch < self.epoch:
                return
            self.epoch = layout.epoch
            self._me = me
            self._shard.serves = bool(layout.members) and layout.members[0].key == me
            others = [each for each in layout.members if each.key != me]
            known = {each.member.key: each for each in self._followers}
            recruit = self._recruit
            if recruit is not None:
                known[recruit.member.key] = recruit
            if not self._shard.serves:
                others = []
            self._followers = [
                known.pop(each.key) if each.key in known else _Follower(each, self._context)
                for each in others
            ]
            if recruit is not None and recruit.member.key in known and self._shard.serves:
                del known[recruit.member.key]  # it is still being made
            else:
                self._recruit = None
        for each in known.values():
            each.close()

    # -- following ------------------------------------------------------------------------

    def send(self, changes: Sequence[Change], sid: bytes, seq: int, reply: Any) -> None:
        """Have all copies make changes; called by whoever writes."""
        recruit = self._recruit
        if not self._followers and recruit is None:
            return
        sent = [_to_send(each) for each in changes]
        while True:
            follower = None
            try:
                for follower in list(self._followers):
                    follower.call("follow", self.epoch, sent, sid, seq, reply)
                break
            except RequestFailed as failed:
                if not isinstance(failed.args[0], NotServing):
                    raise failed.args[0] from None
                # It follows another one, or has heard of news first that are for this one, too.
                assert follower is not None
                if not self._has_news():
                    self._strike(follower)
            except OSError:
                assert follower is not None
                self._strike(follower)
        if recruit is not None:
            try:
                recruit.call("follow", self.epoch, sent, sid, seq, reply)
            except (OSError, RequestFailed):
                self._recruit = None

    def _has_news(self) -> bool:
        """Ask the scheduler who has the shard; says whether that has changed.

        Raises
        ------
        NotServing
            It is another one that serves by now.
        """
        before = self.epoch
        self.take(self._ask("daskbatch_shared_look", epoch=before, seconds=0.0), self._me)
        if not self._shard.serves:
            raise NotServing
        return self.epoch > before

    def _strike(self, follower: _Follower) -> None:
        """Have the scheduler strike a copy off.

        Raises
        ------
        NotServing
            It is not for this one any more to say that.
        """
        follower.close()
        layout = self._ask("daskbatch_shared_strike", epoch=self.epoch, key=follower.member.key)
        self.take(layout, self._me)
        if not self._shard.serves:
            raise NotServing

    # -- one more -------------------------------------------------------------------------

    def recruit(self, make: Callable[[], Replica]) -> None:
        """Have one more copy, on another worker.

        Parameters
        ----------
        make : callable
            Makes an actor there that has nothing yet.

        Raises
        ------
        Exception
            It did not work.
        """
        follower = _Follower(make(), self._context)
        try:
            with self._shard.writing:
                if not self._shard.serves:
                    raise NotServing
                # From here on it hears of all that is written.
                slots, frozen, done = self._shard.contents()
                first = [("freeze", frozen), ("done", done)]
                follower.call("follow", self.epoch, first, b"", 0, None)
                self._recruit = follower
            piece: list[Change] = []
            room = _PIECE
            for slot in slots:
                piece.append((slot.key, slot))
                room -= slot.size
                if room < 0:
                    self._copy(follower, piece)
                    piece, room = [], _PIECE
            self._copy(follower, piece)
            with self._shard.writing:
                if self._recruit is not follower:
                    raise NotServing
                self._join(follower.member)
        except BaseException:
            with self._shard.writing:
                if self._recruit is follower:
                    self._recruit = None
            follower.close()
            raise

    def _join(self, member: Replica) -> None:
        """Have a copy count; nobody must write until it is known whether it does."""
        try:
            layout = self._ask("daskbatch_shared_joined", epoch=self.epoch, member=member)
        except NotServing:
            raise
        except Exception:
            # It may have been counted, and the answer be lost.
            layout = self._look_again()
        self.take(layout, self._me)

    def _look_again(self) -> Layout:
        for attempt in range(_ATTEMPTS):
            try:
                return self._ask("daskbatch_shared_look", epoch=self.epoch, seconds=0.0)
            except NotServing:
                raise
            except Exception:
                if attempt == _ATTEMPTS - 1:
                    # Rather nobody serves than one that leaves out a copy that counts.
                    self._shard.serves = False
                    raise
                sleep(_PAUSE)
        raise AssertionError

    def _copy(self, follower: _Follower, piece: Sequence[tuple[Any, ...]]) -> None:
        with self._shard.writing:
            if self._recruit is not follower:
                raise NotServing
            # What was written meanwhile it has heard of.
            changes = [
                ("set", key, to_send(slot.value))
                for key, slot in piece
                if self._shard.has_still(slot)
            ]
            if changes:
                follower.call("follow", self.epoch, changes, b"", 0, None)

    def close(self) -> None:
        """Leave the copies to themselves."""
        for each in self._followers:
            each.close()


def _to_send(change: Change) -> Change:
    return ("set", change[1], to_send(change[2])) if change[0] == "set" else change
