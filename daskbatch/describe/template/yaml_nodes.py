"""Reads a YAML file into nodes that know their lines, and refuses what would surprise.

Does not know what the keys mean. There are no aliases, anchors, tags, merged maps or second
documents: a file is small, and says everything where it stands.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

import yaml

from daskbatch.describe.template.yaml_scalars import Plain, resolve
from daskbatch.errors import TemplateError

#: The most that a file may hold: it says how tasks are made, and is no place for data.
MAX_BYTES = 64 * 1024
MAX_NODES = 5_000
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class YamlScalar:
    """A word, a number or a text, as it is written and as it is meant; `plain` if not quoted."""

    line: int
    text: str
    value: Plain
    plain: bool


@dataclass(frozen=True, slots=True)
class YamlList:
    """A list."""

    line: int
    items: tuple[YamlNode, ...]


@dataclass(frozen=True, slots=True)
class YamlMap:
    """A map; its keys are texts, each there once, with their lines."""

    line: int
    entries: tuple[tuple[str, int, YamlNode], ...]


YamlNode = YamlScalar | YamlList | YamlMap


def wrong(file: str, line: int | None, what: str) -> TemplateError:
    """Make the error that says what is wrong in which line."""
    return TemplateError(f"{file}: {what}" if line is None else f"{file}:{line}: {what}")


def show(node: YamlNode) -> str:
    """Say what a node is, for messages."""
    if isinstance(node, YamlList):
        return "a list"
    if isinstance(node, YamlMap):
        return "a map"
    if node.value is None:
        return "nothing"
    text = repr(node.value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- from the disk ------------------------------------------------------------------------


def read_file(path: str, file: str) -> bytes:
    """Read a file that is to hold YAML.

    Parameters
    ----------
    path : str
        Where it is.
    file : str
        What messages call it.

    Raises
    ------
    TemplateError
        It cannot be read, or is too large.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # a pipe would wait, and a device may never end
            kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise wrong(file, None, f"is {kind}: expected a template, a YAML file")
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise wrong(
            file, None, f"there is no such file ({path}): expected a template, a YAML file"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise wrong(file, None, f"cannot be read: {reason}") from None
    return data


# -- from bytes ---------------------------------------------------------------------------


def read_nodes(data: bytes, file: str) -> YamlNode:
    """Read YAML into nodes.

    Parameters
    ----------
    data : bytes
        What the file holds.
    file : str
        What messages call it.

    Raises
    ------
    TemplateError
        It is not YAML, not UTF-8, or uses what is refused here.

    Examples
    --------
    >>> read_nodes(b"sec: 5", "my.yml")
    YamlMap(line=1, entries=(('sec', 1, YamlScalar(line=1, text='5', value=5, plain=True)),))
    """
    if len(data) > MAX_BYTES:
        raise wrong(file, None, f"is larger than {MAX_BYTES // 1024} KiB: that is no template")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise wrong(file, line, f"{found} is not UTF-8: expected a text file in UTF-8") from None
    return _Builder(text, file).build()


class _Builder:
    """Builds nodes out of the parser's events.

    PyYAML's own composer calls itself for each level (a deep file ends the interpreter where
    it is the one in C), and forgets anchors. The parser in Python is taken everywhere, since
    the two do not accept quite the same files.
    """

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._nodes = 0

    def build(self) -> YamlNode:
        try:
            parser = yaml.SafeLoader(self._text)
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            found = f"character U+{ord(self._text[error.position]):04X}"
            raise wrong(self._file, line, f"{found} does not belong into a YAML file") from None
        try:
            return self._document(parser)
        except TemplateError:
            raise
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = parser.line if mark is None else mark.line
            why = ", ".join(part for part in (error.context, error.problem) if part)
            raise wrong(self._file, line + 1, f"is not valid YAML: {why}") from None
        except Exception as error:  # the parser's own: "\UFFFFFFFF" is a ValueError of chr, say
            line = parser.line + 1
            raise wrong(self._file, line, f"is not valid YAML: {error}") from None
        finally:
            parser.dispose()

    def _document(self, parser: yaml.SafeLoader) -> YamlNode:
        root: YamlNode | None = None
        #: The lists and maps that are open: their lines, what is in them, whether they are maps.
        open_: list[tuple[int, list[YamlNode], bool]] = []
        while parser.check_event():
            event: Any = parser.get_event()  # type: ignore[no-untyped-call]
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise wrong(self._file, line, "a second document begins: expected one alone")
            self._require_bare(event, line)
            node: YamlNode
            if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
                if len(open_) == MAX_DEPTH:
                    raise wrong(self._file, line, f"is nested more than {MAX_DEPTH} deep")
                open_.append((line, [], isinstance(event, yaml.MappingStartEvent)))
                continue
            if isinstance(event, yaml.ScalarEvent):
                node = self._scalar(event.value, event.implicit[0], line)
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                began, inside, is_map = open_.pop()
                node = self._entries(began, inside) if is_map else YamlList(began, tuple(inside))
            else:
                continue
            self._nodes += 1
            if self._nodes > MAX_NODES:
                raise wrong(self._file, line, f"holds more than {MAX_NODES} values")
            if open_:
                open_[-1][1].append(node)
            else:
                root = node
        if root is None:
            raise wrong(self._file, 1, "is empty: expected a template, a map of its keys")
        return root

    def _require_bare(self, event: Any, line: int) -> None:
        if isinstance(event, yaml.AliasEvent):
            what = f"alias '*{event.anchor}': write out what it stands for"
        elif getattr(event, "anchor", None) is not None:
            what = f"anchor '&{event.anchor}': there are no aliases here, take it away"
        elif getattr(event, "tag", None) is not None:
            what = f"tag '{event.tag}': there are no tags here; quote what is to be a text"
        else:
            return
        raise wrong(self._file, line, f"found the {what}")

    def _scalar(self, text: str, plain: bool, line: int) -> YamlScalar:
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise wrong(self._file, line, f"{text[:40]!r} holds a character that no text may hold")
        if not plain:
            return YamlScalar(line, text, text, False)
        try:
            return YamlScalar(line, text, resolve(text), True)
        except ValueError as error:
            raise wrong(self._file, line, str(error)) from None

    def _entries(self, line: int, inside: list[YamlNode]) -> YamlMap:
        entries: dict[str, tuple[str, int, YamlNode]] = {}
        for key, value in zip(inside[::2], inside[1::2], strict=True):
            if not isinstance(key, YamlScalar) or not isinstance(key.value, str):
                what = f"{show(key)} is no key: expected a text, quoted if need be"
                raise wrong(self._file, key.line, what)
            before = entries.get(key.value)
            if before is not None:
                what = f"key {key.value!r} is there already, in line {before[1]}: expected it once"
                raise wrong(self._file, key.line, what)
            entries[key.value] = key.value, key.line, value
        return YamlMap(line, tuple(entries.values()))
