"""The distributed dictionary `DDict`, which tasks and clients share.

`DDict` adds creation, lifetime, `save` and `load` to the mapping protocol of `shared.mapping`. Any
number of threads may use one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

from daskbatch import config
from daskbatch.describe.access import CommunicationDomain, CommunicationObject, Mode
from daskbatch.describe.values import whole_number_of
from daskbatch.errors import ServiceLost, SpecError
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.shared.creation import (
    ClusterArgument,
    create_filled,
    create_or_open,
    owner_context,
)
from daskbatch.shared.data.messages import ObjectOptions
from daskbatch.shared.data.snapshot import check_snapshot, read_snapshot, write_snapshot
from daskbatch.shared.dict_client import DictClient
from daskbatch.shared.mapping import DictMapping
from daskbatch.shared.proxy import ObjectProxy, proxy_of
from daskbatch.shared.store import operations
from daskbatch.timeouts import parse_timeout

#: The order of accesses to a key: as for files.
_DOMAIN = CommunicationDomain()

#: How often `save` tries to write the file, if workers die meanwhile.
_SAVE_ATTEMPTS = 3

#: The attributes that a `DDict` itself has; objects of a derived class may have more.
_OWN_ATTRIBUTES = frozenset({"_client", "_wait_for_keys", "_timeout", "_before_access", "_proxy"})


class DDict(DictMapping):
    """A dictionary that the client, tasks and their child processes share.

    The contents live on the workers of a cluster, in shards (by default one per worker). Values are
    copied on write and on read. Pickling sends a reference, not the contents: a task that receives
    the dictionary as an argument uses the same one. This creates no dependency; declare accesses
    with `Batch.read` and `Batch.write`.

    Parameters
    ----------
    cluster : str, distributed.Client, cluster object or Batch, optional
        Where it is created; by default the cluster that this process is connected to.
    shards : int, optional
        The number of shards. By default one per worker, up to 32.
    replicas : int
        On how many workers each key is kept. With 2, no key is lost when a worker dies.
    wait_for_keys : bool
        Whether ``d[key]`` waits until the key is written. A task that waits releases its worker
        slot meanwhile.
    timeout : float or timedelta, optional
        Seconds that ``d[key]`` waits at most.
    memory_limit : int or str, optional
        How much each worker keeps in memory, in bytes or as in "1GiB"; the rest is on disk. By
        default 30 % of the worker's own limit, for all such dictionaries together.
    name : str, optional
        Name under which other clients of the cluster can open the same dictionary. Lifetime: a
        dictionary made by `batch.ddict()` ends with its Batch. Otherwise a named one exists until
        `close`; an unnamed one ends with the Batch of the task, or the client, that made it; if it
        was made from an address or a cluster object, with this process.

    Raises
    ------
    SpecError
        A parameter is wrong, or there are fewer workers than replicas. It is a `ValueError`.
    LifecycleError
        No `cluster` is given, and this process is connected to none. Of all operations: the
        dictionary has been closed. Of those that write: it is frozen.
    ServiceLost
        The cluster cannot be reached. Of all operations: the shard was lost with a worker.
    KeyError, TimeoutError
        Of ``d[key]``: the key is not there; or, with `wait_for_keys`, not within `timeout`.
    SerializationError
        Of all operations with keys or values: one cannot be pickled, or not unpickled here.
    TypeError
        Of all operations with keys: a key cannot be hashed.

    Notes
    -----
    Any number of threads, tasks and processes may use it at the same time. Operations on one key
    are atomic, and cost one request to the worker that has the key; reads by a task in a thread of
    that worker cost none. `put_many` and `get_many` send few requests to each shard. `len`,
    `popitem`, `clear`, iteration, `stats`, `freeze` and `save` ask every shard, one after another.
    Others may write meanwhile; only `save` shows the contents of one moment.

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
        cluster: ClusterArgument = None,
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
            None if shards is None else _require_count("shards", shards),
            _require_count("replicas", replicas),
            None if memory_limit is None else _parse_size(memory_limit),
        )
        seconds = _require_timeout(timeout)
        with owner_context(cluster, name) as context:
            proxy = create_or_open(context, options, name)
        self._attach(proxy, bool(wait_for_keys), seconds, context.before_access)

    def _attach(
        self,
        proxy: ObjectProxy,
        wait_for_keys: bool,
        timeout: float | None,
        before_access: Callable[..., None] | None = None,
    ) -> None:
        """Initialize this object for an existing dictionary; also called when it is unpickled."""
        super().__init__(DictClient(proxy), wait_for_keys, timeout, before_access)
        self._proxy = proxy

    def _require_open(self) -> None:
        self._proxy.refresh()

    # -- workers --------------------------------------------------------------------------

    def local_keys(self) -> list[Any]:
        """Return the keys that are served by this process: none outside of tasks.

        Examples
        --------
        >>> batch.ddict().local_keys()
        []
        """
        local = [index for index in range(self._proxy.count) if self._proxy.is_local(index)]
        if not local:
            self._require_open()
        return [key for index in local for key in self._client.keys_of(index)]

    def workers_for(self, keys: Iterable[Any]) -> list[str]:
        """Return the workers that serve keys, those that serve most of them first.

        Parameters
        ----------
        keys : iterable
            The keys.

        Returns
        -------
        list of str
            Addresses. Given to a task as ``workers=``, they have it run where its data is. A key
            that is not there yet counts for the worker that will serve it.

        Raises
        ------
        ServiceLost
            A shard that has one of the keys was lost with a worker.

        Examples
        --------
        >>> d = batch.ddict()
        >>> options = batch.options(workers=d.workers_for(["a"]))
        >>> task = options.function(d.get, "a")
        """
        wanted = list(keys)
        if not wanted:
            self._require_open()
        return self._client.workers_for(wanted)

    def stats(self) -> list[dict[str, Any]]:
        """Return for each shard: worker, copies, keys, and bytes in memory and on disk.

        `copies` is the number of other workers that have the shard, too, and `missing` how many
        there are to be more: until workers join, or the copies are made.

        Examples
        --------
        >>> d = batch.ddict(shards=1)
        >>> d["a"] = 1
        >>> [(shard["keys"], shard["copies"], shard["missing"]) for shard in d.stats()]
        [(1, 0, 0)]
        """
        self._proxy.refresh()
        return [
            {**self._proxy.describe_layout(index), **each}
            for index, each in enumerate(self._client.call_all(operations.STATS))
        ]

    # -- the whole dictionary -------------------------------------------------------------

    def freeze(self) -> None:
        """Make all writes raise `LifecycleError`, until `unfreeze`.

        Background tasks that write to it are run first. To freeze it twice does no harm.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.freeze()
        >>> d.frozen
        True
        """
        self._await_conflicting_tasks(Mode.WRITE)
        self._client.call_all(operations.FREEZE, True)

    def unfreeze(self) -> None:
        """Allow writes again.

        Examples
        --------
        >>> d = batch.ddict()
        >>> d.freeze()
        >>> d.unfreeze()
        >>> d["a"] = 1
        """
        self._client.call_all(operations.FREEZE, False)

    @property
    def frozen(self) -> bool:
        """Whether all writes raise `LifecycleError`; see `freeze`."""
        return all(each["frozen"] for each in self._client.call_all(operations.STATS))

    def save(self, path: str | Path) -> None:
        """Write the contents of one moment to a file; others may write to it meanwhile.

        Keys may be objects of classes that the program's ``__main__`` defines. A program that loads
        the file, outside of tasks, finds them by the names of its own classes. Values of such
        classes keep the classes of the program that wrote them, which are other classes than its
        own: where that matters, define the classes in a module.

        Parameters
        ----------
        path : str or Path
            The file. It is written as a whole or not at all: an old file stays until the new one
            is complete.

        Raises
        ------
        OSError
            The file cannot be written, or the path names something other than a regular file.
        ServiceLost
            A shard is lost, or workers died during each of 3 attempts.

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
        for remaining in reversed(range(_SAVE_ATTEMPTS)):
            try:
                with self._client.snapshot() as records:
                    write_snapshot(path, records)
                return
            except ServiceLost:
                # The worker of a shard has died; a backup may have all that it had.
                if not remaining or self._is_lost():
                    raise

    def _is_lost(self) -> bool:
        self._proxy.refresh()
        return not all(self._proxy.layout(index).replicas for index in range(self._proxy.count))

    @classmethod
    def load(cls, path: str | Path, cluster: ClusterArgument = None, **options: Any) -> DDict:
        """Create a dictionary with the contents that `save` has written.

        Parameters
        ----------
        path : str or Path
            The file.
        cluster, **options
            See `DDict`. The name must not be in use: to add the contents of a file to an existing
            dictionary, use ``d.update(DDict.load(path))``.

        Returns
        -------
        DDict
            A new dictionary.

        Raises
        ------
        SpecError
            `save` has not written the file, or it is damaged; or the name is in use.
        OSError
            The file cannot be read.
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
        return create_filled(
            cluster,
            options.get("name"),
            lambda context: cls(context, **options),
            lambda made: made._client.put_records(read_snapshot(path)),
        )

    def close(self) -> None:
        """End the dictionary for all its users; a later use raises `LifecycleError`.

        To close a dictionary that has ended, with its Batch for example, has no effect.
        """
        self._proxy.close()

    def __enter__(self) -> DDict:
        """Return the dictionary itself, which ends with the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the dictionary, for all its users."""
        self.close()

    # -- identity -------------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """The name, or None."""
        return self._proxy.info.name

    def __batch_channels__(
        self, keys: tuple[Any, ...]
    ) -> tuple[CommunicationObject, tuple[Any, ...]]:
        """Return what `Batch.read` and `Batch.write` declare: this dictionary and the keys."""
        return CommunicationObject(_DOMAIN, self._proxy.access_name("ddict")), keys

    def _check_declared(self, mode: str, keys: tuple[Any, ...]) -> None:
        # Not at the top: the mapping calls it only where strict tasks run.
        from daskbatch.worker.execution.strict_access import check_shared

        check_shared(mode, f"ddict-{self._proxy.uid}", keys, self._proxy.description)

    def __reduce__(self) -> tuple[Any, ...]:
        # A reference to the dictionary, never the secrets for connecting to its shards.
        reference = self._proxy.scheduler, self._proxy.uid, self._wait_for_keys, self._timeout
        more = {name: value for name, value in vars(self).items() if name not in _OWN_ATTRIBUTES}
        return _unpickle, (type(self), *reference), more or None

    def __repr__(self) -> str:
        return f"<{self._proxy.description}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{index}</td><td>{escape(each['worker'])}</td><td>{each['copies']}</td>"
            f"<td>{each['keys']:,}</td><td>{each['bytes']:,}</td><td>{each['spilled']:,}</td></tr>"
            for index, each in enumerate(self.stats())
        )
        return (
            f"<table><caption>{escape(self._proxy.description)}</caption><thead><tr>"
            "<th>shard</th><th>worker</th><th>copies</th><th>keys</th><th>bytes in memory</th>"
            f"<th>bytes on disk</th></tr></thead><tbody>{rows}</tbody></table>"
        )


def _unpickle(
    kind: type[DDict], scheduler: str, uid: str, wait_for_keys: bool, timeout: float | None
) -> DDict:
    """Return the object for a pickled reference."""
    made = kind.__new__(kind)
    made._attach(proxy_of(scheduler, uid), wait_for_keys, timeout)
    return made


def _require_count(parameter: str, number: Any) -> int:
    count = whole_number_of(number)
    if count is None or count < 1:
        raise SpecError(f"{parameter}= must be a whole number from 1, not {safe_repr(number)}")
    return count


def _require_timeout(timeout: float | timedelta | None) -> float | None:
    seconds = parse_timeout(timeout)
    given = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if given is not None and given < 0:
        raise SpecError(f"timeout= must not be negative, and is {safe_repr(timeout)}")
    return seconds


def _parse_size(limit: int | str) -> int:
    try:
        size = config.as_bytes(limit)
    except (ValueError, AttributeError, TypeError):
        size = -1
    if size < 0:
        raise SpecError(
            f'memory_limit= must be bytes or a text such as "1GiB", not {safe_repr(limit)}'
        )
    return size
