"""What a task reads and writes: accesses to channels of communication objects.

All records are immutable, so any number of threads may use them. Which accesses wait for which is
decided in `daskbatch.plan`.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

from daskbatch.errors import SpecError
from daskbatch.serialization import pickling
from daskbatch.serialization.safe_text import is_from_outside, plain, safe_repr


def _require_hashable(value: object, what: str) -> None:
    try:
        hash(value)
    except BaseException as error:
        if is_from_outside(error):
            raise
        cause = None if type(error) is TypeError else error
        raise SpecError(f"{what} must be hashable, and {safe_repr(value)} is not") from cause


@dataclass(frozen=True, slots=True)
class CommunicationDomain:
    """The pairs of accesses to one channel that must keep their order.

    It is immutable; any number of threads may use it.

    Parameters
    ----------
    rar, raw, war, waw : bool
        Read after read, read after write, write after read, write after write. A pair that
        is switched off is not ordered, and passes no failure from one task to the other.

    Raises
    ------
    SpecError
        A parameter is neither True nor False. It is a `ValueError`.

    Examples
    --------
    Tasks that add to a log in any order, and tasks that read it after them:

    >>> CommunicationDomain(waw=False).waw
    False
    """

    rar: bool = False
    raw: bool = True
    war: bool = True
    waw: bool = True

    def __post_init__(self) -> None:
        for name in ("rar", "raw", "war", "waw"):
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"{name}= must be True or False, not {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class CommunicationObject:
    """Something through which tasks communicate, other than files and dictionaries.

    Two objects with equal domains and names are the same. Pass an object and your own channels to
    `Batch.read` and `Batch.write`; without channels, the whole object is meant. It is immutable;
    any number of threads may use it.

    Parameters
    ----------
    domain : CommunicationDomain
        Which accesses must keep their order.
    name : hashable
        What identifies the object, for example an address.

    Raises
    ------
    SpecError
        The domain is not a `CommunicationDomain`, or the name is not hashable. It is a
        `ValueError`.

    Examples
    --------
    >>> socket = CommunicationObject(CommunicationDomain(), "10.0.0.7")
    >>> socket == CommunicationObject(CommunicationDomain(), "10.0.0.7")
    True
    """

    domain: CommunicationDomain
    name: Hashable

    def __post_init__(self) -> None:
        if not isinstance(self.domain, CommunicationDomain):
            raise SpecError(
                f"domain= must be a CommunicationDomain, not {type(self.domain).__name__}"
            )
        _require_hashable(self.name, "the name of a CommunicationObject")

    def __hash__(self) -> int:
        # It is computed for each access of each task. Objects of one name have one domain.
        return hash(self.name)


@runtime_checkable
class OffersChannels(Protocol):
    """The method of an object that tasks can read and write as a `CommunicationObject`.

    Channels that are equal are the same channel; no channels mean the whole object.
    """

    def __batch_channels__(
        self, channels: tuple[Any, ...]
    ) -> tuple[CommunicationObject, tuple[Hashable, ...]]: ...


class _Special(Enum):
    """Names that no user can give by chance. Each remains one object when it is unpickled."""

    FILES = "files"
    WHOLE = "*"

    def __repr__(self) -> str:
        return self.name

    # That of an enumeration is written in Python, and is called for each access of each task.
    __hash__ = object.__hash__


class ObjectName(str):
    """The identity of a dictionary or a queue, with the name that messages show.

    It is equal to the plain text, and is pickled as that. It does not change; any number of
    threads may use it.
    """

    __slots__ = ("label",)

    label: str

    @classmethod
    def make(cls, identity: str, label: object) -> str:
        """Return an identity.

        Parameters
        ----------
        identity : str
            The text that accesses compare.
        label : object
            The name that messages show; None for the identity itself.
        """
        if label is None:
            return identity
        name = cls(identity)
        name.label = str(label)
        return name

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


#: The object whose channels are all files and directories.
FILES = CommunicationObject(CommunicationDomain(), _Special.FILES)

#: The channel that stands for every channel of an object.
WHOLE = _Special.WHOLE


class Channel(NamedTuple):
    """A part of an object that tasks read or write: a file, a key, a channel."""

    object: CommunicationObject
    key: Hashable

    def __str__(self) -> str:
        if self.object.name is FILES.name:
            return str(self.key)
        name = self.object.name
        shown = name.label if isinstance(name, ObjectName) else str(name)
        return shown if self.key is WHOLE else f"{shown}[{safe_repr(self.key)}]"


class Mode(Enum):
    """The two ways to access a channel."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Access:
    """A task's access to some channels of one object; made by `Batch.read` and `Batch.write`."""

    mode: Mode
    channels: tuple[Channel, ...]

    def __str__(self) -> str:
        return f"{self.mode.value} of {', '.join(map(str, self.channels))}"

    def __reduce__(self) -> tuple[Any, ...]:
        if pickling.reference(self) is None:
            return Access, (self.mode, self.channels)
        # A user who passes it to a function means something else: as an argument it orders
        # nothing.
        raise SpecError(
            f"there is an access among the arguments ({self}): write function(f, (a, b), "
            "[reads…], [writes…]), or function(f, a, b, reads=[…], writes=[…]); behind options(): "
            "options(reads=[…], writes=[…]).function(f, a, b)"
        )


def make_access(mode: Mode, obj: object, channels: Sequence[Any], base: str) -> Access:
    """Make an access from the arguments of `Batch.read` or `Batch.write`.

    Parameters
    ----------
    mode : Mode
        Read or write.
    obj : path, CommunicationObject or object with ``__batch_channels__``
        The object that is accessed. A path is a directory if channels follow, else it is itself
        the channel.
    channels : sequence
        File names below the directory, or channels of the object.
    base : str
        The directory that a relative path is relative to.

    Raises
    ------
    SpecError
        Tasks cannot communicate through an object of this type, or a channel is not hashable.
    """
    if isinstance(obj, (str, os.PathLike)):
        return Access(mode, _files(obj, channels, base))
    if isinstance(obj, CommunicationObject):
        keys: tuple[Hashable, ...] = tuple(channels)
        owner = obj
    elif isinstance(obj, OffersChannels):
        owner, keys = obj.__batch_channels__(tuple(channels))
    else:
        raise SpecError(
            f"cannot {mode.value} {safe_repr(obj)}: give a path (a directory and file names, or "
            "one path alone), a DDict, a Queue or a CommunicationObject"
        )
    for key in keys:
        _require_hashable(key, f"a channel of {owner.name}")
    return Access(mode, tuple(Channel(owner, key) for key in keys or (WHOLE,)))


def _files(path: str | os.PathLike[Any], names: Sequence[Any], base: str) -> tuple[Channel, ...]:
    directory = os.path.join(base, plain(os.fsdecode(path)))
    if not names:
        return (_file(directory),)
    for name in names:
        if not isinstance(name, (str, os.PathLike)):
            raise SpecError(f"{safe_repr(name)} is not a file name: give a str or a Path")
    return tuple(_file(os.path.join(directory, plain(os.fsdecode(name)))) for name in names)


def _file(path: str) -> Channel:
    normal = os.path.normpath(path)
    # POSIX allows two slashes at the start to mean something special. No system uses that.
    return Channel(FILES, normal[1:] if normal.startswith("//") else normal)
