"""The distributed dictionary: what tasks and clients know by key.

Does not know where a key is kept, nor how it is asked for; `shared` does.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

from daskbatch import config
from daskbatch.describe.access import CommunicationDomain, CommunicationObject, Mode
from daskbatch.errors import ServiceLost, SpecError
from daskbatch.shared.creation import OwnerContext, Where, at_home, open_shared
from daskbatch.shared.data.messages import ObjectOptions
from daskbatch.shared.data.snapshot import check_snapshot, read_snapshot, write_snapshot
from daskbatch.shared.dict_client import DictClient
from daskbatch.shared.mapping import DictMapping
from daskbatch.shared.proxy import ObjectProxy, handle_of
from daskbatch.timeouts import parse_timeout

_DOMAIN = CommunicationDomain()

#: How often is tried to save, if workers die meanwhile.
_TRIES = 3

#: The attributes that a `DDict` has itself; a class derived from it may have more.
_PARTS = frozenset({"_handle", "_wait", "_timeout", "_calls", "_touched"})


class DDict(DictMapping):
    """A dictionary that the client, tasks and their child processes share.

    It lives on the workers of a cluster, in as many parts (shards) as there are workers. What is
    put in is copied, and what is got is a copy. It is sent as what it is called alone: a task
    that has one among its arguments uses the same dictionary; to have tasks wait for each other
    say what they read and write, with `Batch.read` and `Batch.write`.

    Parameters
    ----------
    cluster : str, distributed.Client, cluster object or Batch, optional
        Where it is made; by default the cluster that this process is connected to.
    shards : int, optional
        In how many parts. By default one for each worker, up to 32.
    replicas : int
        On how many workers each key is kept. With 2, none is lost when a worker dies.
    wait_for_keys : bool
        Whether ``d[key]`` waits until the key is written. A task that waits leaves its slot to
        others meanwhile.
    timeout : float or timedelta, optional
        Seconds that it waits at most.
    memory_limit : int or str, optional
        How much each worker keeps in memory, in bytes or as in "1GiB"; the rest is on disk. By
        default 30 % of the worker's own limit, for all such dictionaries together.
    name : str, optional
        The same name on one cluster is the same dictionary. What a Batch has made ends with the
        Batch; else one with a name is there until it is closed, and one without ends with the
        Batch whose task has made it, or the client that has; where that was given as an address
        or a cluster object, with the program.

    Raises
    ------
    SpecError
        A parameter is wrong, or there are fewer workers than replicas. It is a `ValueError`.
    LifecycleError
        There is no `cluster`, and this process is connected to none; later, of whatever is done
        with it: it has been closed; of all that writes: it is frozen.
    ServiceLost
        The cluster cannot be reached; later: what was asked for was lost with a worker.
    KeyError, TimeoutError
        Of ``d[key]``: the key is not there; or, with `wait_for_keys`, not within `timeout`.
    SerializationError
        Of all that takes or gives keys and values: one cannot be pickled, or not unpickled here.
    TypeError
        Of all that takes keys: one is not hashable.

    Examples
    --------
    >>> d = batch.ddict(name="numbers")
    >>> d.name, d.frozen
    ('numbers', False)
    >>> d["a"] = [1, 2]
    >>> def double(d, key):
    ...     d[key] = d[key] * 2
    >>> task = batch.function(double, d, "a", writes=[batch.write(d, "a")])
    >>> task.run()
    >>> d["a"]
    [1, 2, 1, 2]
    >>> d.close()
    """

    def __init__(
        self,
        cluster: Where = None,
        *,
        shards: int | None = None,
        replicas: int = 1,
        wait_for_keys: bool = False,
        timeout: float | timedelta | None = None,
        memory_limit: int | str | None = None,
        name: str | None = None,
    ) -> None:
        options = ObjectOptions(
            "ddict",
            None if shards is None else _whole("shards", shards),
            _whole("replicas", replicas),
            None if memory_limit is None else _size(memory_limit),
        )
        seconds = _patience(timeout)
        with at_home(cluster, name) as home:
            self._be(open_shared(home, options, name), bool(wait_for_keys), seconds, home)

    def _be(
        self,
        handle: ObjectProxy,
        wait_for_keys: bool,
        timeout: float | None,
        home: OwnerContext | None = None,
    ) -> None:
        self._handle = handle
        self._wait = wait_for_keys
        self._timeout = timeout
        self._calls = DictClient(handle)
        self._touched = None if home is None else home.touch

    def _require_open(self) -> None:
        self._handle.renew()

    # -- where they are -------------------------------------------------------------------

    def local_keys(self) -> list[Any]:
        """Give the keys that are kept in this process: none, unless a task asks.

        Examples
        --------
        >>> batch.ddict().local_keys()
        []
        """
        here = [index for index in range(self._handle.count) if self._handle.is_here(index)]
        if not here:
            self._require_open()
        return [key for index in here for key in self._calls.keys_of(index)]

    def workers_for(self, keys: Iterable[Any]) -> list[str]:
        """Give the workers that keep some keys, or will: those first that keep most.

        Parameters
        ----------
        keys : iterable
            Which keys.

        Returns
        -------
        list of str
            Addresses, as ``workers=`` of a task takes them: it runs where the data is.

        Raises
        ------
        ServiceLost
            A part that has one of them was lost with a worker.

        Examples
        --------
        >>> d = batch.ddict()
        >>> near = batch.options(workers=d.workers_for(["a"]))
        >>> task = near.function(d.get, "a")
        """
        wanted = list(keys)
        if not wanted:
            self._require_open()
        return self._calls.workers_for(wanted)

    def stats(self) -> list[dict[str, Any]]:
        """Tell of each shard: worker, copies, keys, and how many bytes are in memory and on disk.

        Examples
        --------
        >>> d = batch.ddict(shards=1)
        >>> d["a"] = 1
        >>> [(shard["keys"], shard["copies"]) for shard in d.stats()]
        [(1, 0)]
        """
        self._handle.renew()
        return [
            {"worker": self._calls.worker_of(index), "copies": self._calls.copies_of(index), **each}
            for index, each in enumerate(self._calls.everywhere("stats"))
        ]

    # -- as a whole -----------------------------------------------------------------------

    def freeze(self) -> None:
        """Let nobody write any more, until `unfreeze`: that is a `LifecycleError`.

        Background tasks are run first that write to it. To freeze it twice does no harm.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.freeze()
        >>> d.frozen
        True
        """
        self._await_conflicting_tasks(Mode.WRITE)
        self._calls.everywhere("freeze", True)

    def unfreeze(self) -> None:
        """Let everybody write again.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.freeze()
        >>> d.unfreeze()
        >>> d["a"] = 1
        """
        self._calls.everywhere("freeze", False)

    @property
    def frozen(self) -> bool:
        """Whether nobody can write; see `freeze`."""
        return all(each["frozen"] for each in self._calls.everywhere("stats"))

    def save(self, path: str | Path) -> None:
        """Write all there is at one moment to a file; others may write to it meanwhile.

        A program that loads the file finds keys of its own ``__main__``'s classes, by their names,
        unless it is a task that loads it. Values of such classes are of the classes of the program
        that has put them in, and no others: where that matters, define them in a module.

        Parameters
        ----------
        path : str or Path
            The file. It is there as a whole or not at all, and one that was there before stays
            until then.

        Raises
        ------
        OSError
            It cannot be written, or is there and no regular file.
        ServiceLost
            A part is lost; or workers died each time that it was tried.

        Examples
        --------
        >>> import tempfile
        >>> d = batch.ddict()
        >>> d["a"] = 1
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     d.save(Path(directory) / "state")
        ...     DDict.load(Path(directory) / "state", batch)["a"]
        1
        """
        self._await_conflicting_tasks(Mode.READ)
        for left in reversed(range(_TRIES)):
            try:
                with self._calls.snapshot() as records:
                    write_snapshot(path, records)
                return
            except ServiceLost:
                # The worker of a part has died; another may have all that it had.
                if not left or self._is_lost():
                    raise

    def _is_lost(self) -> bool:
        self._handle.renew()
        return not all(self._handle.layout(index).members for index in range(self._handle.count))

    @classmethod
    def load(cls, path: str | Path, cluster: Where = None, **options: Any) -> DDict:
        """Make a dictionary of what `save` has written.

        Parameters
        ----------
        path : str or Path
            The file.
        cluster, **options
            See `DDict`. There must be none of its name yet: what is in the file can be added to
            one that is there by ``d.update(DDict.load(path))``.

        Returns
        -------
        DDict
            With all that was saved.

        Raises
        ------
        SpecError
            It is no such file, or it is damaged; or there is one of its name already.
        OSError
            It cannot be read.
        LifecycleError, ServiceLost
            See `DDict`.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     batch.ddict().save(Path(directory) / "nothing")
        ...     len(DDict.load(Path(directory) / "nothing", batch, shards=1))
        0
        """
        check_snapshot(path)
        with at_home(cluster, options.get("name")) as home:
            made = cls(home._replace(afresh=True), **options)
        try:
            made._calls.put_records(read_snapshot(path))
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        """End it, for all who use it: any later use is a `LifecycleError`,
        but to close it again.

        Nothing happens where it has ended already, with its Batch, say.
        """
        self._handle.close()

    def __enter__(self) -> DDict:
        """Give the dictionary itself, which ends with the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it, for all who use it."""
        self.close()

    # -- what it is -----------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """What it is called, if it has a name."""
        return self._handle.placed.name

    def __batch_channels__(
        self, keys: tuple[Any, ...]
    ) -> tuple[CommunicationObject, tuple[Any, ...]]:
        """Be read and written by tasks; see `Batch.read`."""
        return CommunicationObject(_DOMAIN, f"ddict-{self._handle.uid}"), keys

    def __reduce__(self) -> tuple[Any, ...]:
        # Which it is; never what it takes to connect there.
        which = self._handle.scheduler, self._handle.uid, self._wait, self._timeout
        own = {name: value for name, value in vars(self).items() if name not in _PARTS}
        return _attached, (type(self), *which), own or None

    def __repr__(self) -> str:
        return f"<{self._handle.what}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{index}</td><td>{escape(each['worker'])}</td><td>{each['copies']}</td>"
            f"<td>{each['keys']:,}</td><td>{each['bytes']:,}</td><td>{each['spilled']:,}</td></tr>"
            for index, each in enumerate(self.stats())
        )
        return (
            f"<table><caption>{escape(self._handle.what)}</caption><thead><tr><th>shard</th>"
            "<th>worker</th><th>copies</th><th>keys</th><th>bytes in memory</th>"
            f"<th>bytes on disk</th></tr></thead><tbody>{rows}</tbody></table>"
        )


def _attached(
    kind: type[DDict], scheduler: str, uid: str, wait_for_keys: bool, timeout: float | None
) -> DDict:
    """Make what a pickled dictionary becomes."""
    made = kind.__new__(kind)
    made._be(handle_of(scheduler, uid), wait_for_keys, timeout)
    return made


def _whole(what: str, number: Any) -> int:
    try:
        whole = 0 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        whole = 0
    if whole < 1:
        raise SpecError(f"{what}= must be a whole number from 1, not {number!r}")
    return whole


def _patience(timeout: float | timedelta | None) -> float | None:
    seconds = parse_timeout(timeout)
    span = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if span is not None and span < 0:
        raise SpecError(f"timeout= must not be negative, and is {timeout!r}")
    return seconds


def _size(limit: int | str) -> int:
    try:
        size = config.as_bytes(limit)
    except (ValueError, AttributeError, TypeError):
        size = -1
    if size < 0:
        raise SpecError(f'memory_limit= must be bytes or a text such as "1GiB", not {limit!r}')
    return size
