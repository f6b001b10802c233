"""Reads a YAML file into nodes that know their lines.

Aliases, anchors, tags, merged maps and second documents are refused: a file is small, and its text
shows what it means. `MAX_BYTES`, `MAX_NODES` and `MAX_DEPTH` limit the time and memory of reading.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

import yaml

from daskbatch.describe.template.yaml_scalars import Plain, resolve
from daskbatch.errors import TemplateError

#: The limits of a file: its bytes, its values, and how deeply these are nested. A template
#: describes how tasks are made, and is not meant to hold data.
MAX_BYTES = 64 * 1024
MAX_NODES = 5_000
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class YamlScalar:
    """A word, a number or a text.

    `text` is what the file has, `value` its meaning; `plain` says that it is not quoted.
    """

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
    """A map: keys, which are different texts, with their lines and values."""

    line: int
    entries: tuple[tuple[str, int, YamlNode], ...]


#: A part of a file; the root is a part, too.
YamlNode = YamlScalar | YamlList | YamlMap


def template_error(file: str, line: int | None, what: str) -> TemplateError:
    """Make the error that says what is wrong, with the name of the file and the line."""
    return TemplateError(f"{file}: {what}" if line is None else f"{file}:{line}: {what}")


def describe_node(node: YamlNode) -> str:
    """Describe a node in a message."""
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
    """Read the bytes of a template; at most one more than `MAX_BYTES`.

    Parameters
    ----------
    path : str
        The path of the file.
    file : str
        The name of the file in messages.

    Raises
    ------
    TemplateError
        The file cannot be read.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # reading a pipe may wait, and a device may never end
            kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise template_error(file, None, f"is {kind}: expected a template, a YAML file")
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except TemplateError:
        raise
    except FileNotFoundError:
        raise template_error(
            file, None, f"there is no such file ({path}): expected a template, a YAML file"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise template_error(file, None, f"cannot be read: {reason}") from None
    return data


# -- from bytes ---------------------------------------------------------------------------


def read_nodes(data: bytes, file: str) -> YamlNode:
    """Read YAML into nodes.

    Parameters
    ----------
    data : bytes
        The content of the file.
    file : str
        The name of the file in messages.

    Raises
    ------
    TemplateError
        The content is not YAML or not UTF-8, is too large, or uses what is refused here.

    Examples
    --------
    >>> read_nodes(b"sec: 5", "my.yml")
    YamlMap(line=1, entries=(('sec', 1, YamlScalar(line=1, text='5', value=5, plain=True)),))
    """
    if len(data) > MAX_BYTES:
        raise template_error(
            file,
            None,
            f"is larger than {MAX_BYTES // 1024} KiB: expected a template, which is small",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise template_error(
            file, line, f"{found} is not UTF-8: expected a text file in UTF-8"
        ) from None
    return _Builder(text, file).build()


class _Builder:
    """Builds nodes from the parser's events.

    PyYAML's own composer is not used: it recurses for each level, so that a deep file ends the
    interpreter if the composer is the one in C, and it drops anchors. PyYAML's parser in Python is
    used even where the one in C is installed, since the two accept slightly different files.
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
            raise template_error(
                self._file, line, f"{found} does not belong into a YAML file"
            ) from None
        try:
            return self._document(parser)
        except TemplateError:
            raise
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = parser.line if mark is None else mark.line
            why = ", ".join(part for part in (error.context, error.problem) if part)
            raise template_error(self._file, line + 1, f"is not valid YAML: {why}") from None
        except Exception as error:  # a defect of the parser: "\UFFFFFFFF" raises a ValueError
            line = parser.line + 1
            raise template_error(self._file, line, f"is not valid YAML: {error}") from None
        finally:
            parser.dispose()

    def _document(self, parser: yaml.SafeLoader) -> YamlNode:
        root: YamlNode | None = None
        #: The lists and maps that have not ended: the line, the nodes so far, whether it is a map.
        open_: list[tuple[int, list[YamlNode], bool]] = []
        while parser.check_event():
            event: Any = parser.get_event()  # type: ignore[no-untyped-call]
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise template_error(
                    self._file, line, "a second document begins: expected one alone"
                )
            self._require_bare(event, line)
            node: YamlNode
            if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
                if len(open_) == MAX_DEPTH:
                    raise template_error(self._file, line, f"is nested more than {MAX_DEPTH} deep")
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
                raise template_error(self._file, line, f"holds more than {MAX_NODES} values")
            if open_:
                open_[-1][1].append(node)
            else:
                root = node
        if root is None:
            raise template_error(self._file, 1, "is empty: expected a template, a map of its keys")
        return root

    def _require_bare(self, event: Any, line: int) -> None:
        if isinstance(event, yaml.AliasEvent):
            what = f"alias '*{event.anchor}': write its value instead"
        elif getattr(event, "anchor", None) is not None:
            what = f"anchor '&{event.anchor}': aliases are not supported, remove it"
        elif getattr(event, "tag", None) is not None:
            what = f"tag '{event.tag}': tags are not supported; quote a value that should be a text"
        else:
            return
        raise template_error(self._file, line, f"found the {what}")

    def _scalar(self, text: str, plain: bool, line: int) -> YamlScalar:
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise template_error(
                self._file, line, f"{text[:40]!r} has a character that is not allowed in a text"
            )
        if not plain:
            return YamlScalar(line, text, text, False)
        try:
            return YamlScalar(line, text, resolve(text), True)
        except ValueError as error:
            raise template_error(self._file, line, str(error)) from None

    def _entries(self, line: int, inside: list[YamlNode]) -> YamlMap:
        entries: dict[str, tuple[str, int, YamlNode]] = {}
        for key, value in zip(inside[::2], inside[1::2], strict=True):
            if not isinstance(key, YamlScalar) or not isinstance(key.value, str):
                what = f"{describe_node(key)} is not a key: expected a text, quoted if necessary"
                raise template_error(self._file, key.line, what)
            before = entries.get(key.value)
            if before is not None:
                what = f"key {key.value!r} is there already, in line {before[1]}: expected it once"
                raise template_error(self._file, key.line, what)
            entries[key.value] = key.value, key.line, value
        return YamlMap(line, tuple(entries.values()))
