"""Keeps the ranks of jobs that are over for the next job, and ends those that wait for too long.

Any number of threads may use the pool. An idle set of ranks holds no slot. It ends after the
setting ``daskbatch.rank-idle-timeout``, when a job with another key starts ranks on one of its
hosts, when the memory of this host runs out, and with its client and its worker.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from time import monotonic

import psutil

from daskbatch.forking import make_lock
from daskbatch.threads import Condition
from daskbatch.worker.mpi.rank_set import RankSet, SetKey

#: Idle ranks end when less than this part of the memory of the host is available.
_MIN_AVAILABLE_MEMORY = 0.1

#: How long the ranks of an idle set may take to end by themselves, and when the worker ends.
_FAREWELL_SECONDS, _CLOSE_FAREWELL_SECONDS = 2.0, 0.5

#: How often the pool looks at idle sets.
_LOOK_INTERVAL_SECONDS = 1.0


class RankPool:
    """The idle sets of ranks of this process. Safe for any number of threads."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._changed = Condition()
        #: The idle sets, the one that has waited longest first, and when each is to end.
        self._idle: list[tuple[RankSet, float]] = []
        self._ended_topics: set[str] = set()
        #: The threads that end sets.
        self._ending: set[threading.Thread] = set()
        self._thread: threading.Thread | None = None

    def take(self, key: SetKey) -> RankSet | None:
        """Return an idle set with this key; None if there is none.

        Without one, the caller starts a set. For that, idle sets with other keys that have ranks on
        the same hosts end.
        """
        while True:
            with self._changed:
                self._ended_topics.discard(key.topic)
                position = next(
                    (i for i in reversed(range(len(self._idle))) if self._idle[i][0].key == key),
                    None,
                )
                if position is None:
                    break
                ranks = self._idle.pop(position)[0]
            if ranks.is_usable():
                return ranks
            self._end(ranks)
        hosts = {host for host, _ in key.hosts}
        self._end_those(lambda ranks: not hosts.isdisjoint(host for host, _ in ranks.key.hosts))
        return None

    def give_back(self, ranks: RankSet, idle_timeout: float) -> None:
        """Keep a set for the next job.

        Parameters
        ----------
        ranks : RankSet
            The set; its last job has succeeded.
        idle_timeout : float
            How long it may wait for a job. Seconds.
        """
        with self._changed:
            kept = idle_timeout > 0 and ranks.key.topic not in self._ended_topics
            if kept:
                self._idle.append((ranks, monotonic() + idle_timeout))
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._watch, name="daskbatch-idle-ranks", daemon=True
                    )
                    self._thread.start()
        if not kept:
            self._end(ranks)

    def end_client(self, topic: str) -> None:
        """End the idle sets of a client that has ended; does not wait for that."""
        with self._changed:
            self._ended_topics.add(topic)
        self._end_those(lambda ranks: ranks.key.topic == topic)

    def close(self) -> None:
        """End all idle sets, and wait for that."""
        if self.pid != os.getpid():
            return
        with self._changed:
            idle, self._idle = [ranks for ranks, _ in self._idle], []
        for ranks in idle:
            self._end(ranks, _CLOSE_FAREWELL_SECONDS)
        for thread in list(self._ending):
            thread.join()

    def _end_those(self, condition: Callable[[RankSet], bool]) -> None:
        with self._changed:
            ending = [ranks for ranks, _ in self._idle if condition(ranks)]
            self._idle = [each for each in self._idle if each[0] not in ending]
        for ranks in ending:
            self._end(ranks)

    def _end(self, ranks: RankSet, farewell: float = _FAREWELL_SECONDS) -> None:
        """End a set in a thread: it takes a moment, and an event loop may wait for the caller."""

        def end() -> None:
            try:
                ranks.end_idle(farewell)
            finally:
                self._ending.discard(thread)

        thread = threading.Thread(target=end, name="daskbatch-end-ranks", daemon=True)
        self._ending.add(thread)
        thread.start()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if not self._idle:
                    self._thread = None
                    return
            now = monotonic()
            is_scarce = _memory_is_scarce()
            with self._changed:
                ending = [ranks for ranks, end in self._idle if is_scarce or end <= now]
                self._idle = [each for each in self._idle if each[0] not in ending]
            for ranks in ending:
                self._end(ranks)
            with self._changed:
                next_end = min((end for _, end in self._idle), default=now)
                if self._idle:
                    self._changed.wait(min(max(0.0, next_end - now), _LOOK_INTERVAL_SECONDS))


def _memory_is_scarce() -> bool:
    memory = psutil.virtual_memory()
    return bool(memory.available < _MIN_AVAILABLE_MEMORY * memory.total)


#: The pool of this process, once there is one.
_pool: RankPool | None = None
_pool_lock = make_lock()


def get_rank_pool() -> RankPool:
    """Return the pool of this process."""
    global _pool
    with _pool_lock:
        # In a forked process, the inherited pool has the parent's ranks.
        if _pool is None or _pool.pid != os.getpid():
            _pool = RankPool()
            atexit.register(_pool.close)
        return _pool
