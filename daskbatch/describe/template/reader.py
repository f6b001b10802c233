"""Reads a PTD file into a template.

A file is accepted as a whole or not at all. Each error names the file and the line, and says what
was found and what was expected. The arguments that the names stand for are checked later, by
`binding` and `validators`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from keyword import iskeyword

from daskbatch.describe.environment import is_variable
from daskbatch.describe.template.expressions import Expression, ListExpression, Literal
from daskbatch.describe.template.model import (
    MAX_NUMBER,
    TYPES,
    UNITS,
    EnvMap,
    Executable,
    FileAccess,
    KeyAccess,
    Parameter,
    Template,
)
from daskbatch.describe.template.typos import did_you_mean
from daskbatch.describe.template.value_reader import ValueReader, identifier
from daskbatch.describe.template.yaml_nodes import (
    YamlList,
    YamlMap,
    YamlNode,
    YamlScalar,
    describe_node,
    read_file,
    read_nodes,
    template_error,
)
from daskbatch.errors import TemplateError

#: The keys of a file, and of an executable of each type of task.
_KEYS = (
    *("import_args", "import_kwargs", "args", "kwargs"),
    *("type", "executables", "reads", "writes", "name", "timeout"),
)
_EXECUTABLE_KEYS = {
    "function": ("target", "args", "kwargs", "cwd", "env"),
    "process": ("target", "args", "cwd", "env"),
    "job": ("target", "args", "kwargs", "num_procs", "nprocs", "cwd", "env"),
}

#: A file may declare at most this many arguments.
_MAX_NAMES = 100

#: Keywords that `Batch.import_func` cannot take, since its own parameters have these names; each
#: with the words that messages have for the reason.
_TAKEN_KEYWORDS = dict.fromkeys(("self", "ptd_file"), "is one of import_func itself")


def read_template(path: str, file: str) -> Template:
    """Read a PTD file.

    Parameters
    ----------
    path : str
        The path of the file.
    file : str
        The name of the file in messages.

    Raises
    ------
    TemplateError
        The file cannot be read, or something in it is wrong.
    """
    return parse_template(read_file(path, file), file)


def parse_template(data: bytes, file: str) -> Template:
    """Read the content of a PTD file.

    Parameters
    ----------
    data : bytes
        The content.
    file : str
        The name of the file in messages.

    Raises
    ------
    TemplateError
        Something in the content is wrong.

    Examples
    --------
    >>> parse_template(b"{type: process, executables: [{target: date}]}", "my.yml").type
    'process'
    """
    return _Reader(file).template(read_nodes(data, file))


class _Reader:
    """Reads the nodes of one file, for one thread, once."""

    def __init__(self, file: str) -> None:
        self._file = file
        #: For each declared name: the section and the line, for messages.
        self._declared: dict[str, str] = {}
        self._values = ValueReader(file, self._declared)

    def _error(self, line: int, what: str) -> TemplateError:
        return template_error(self._file, line, what)

    # -- the whole ------------------------------------------------------------------------

    def template(self, root: YamlNode) -> Template:
        found = self._map(root, "a template", _KEYS)
        import_args = self._positional("import_args", found.get("import_args"))
        import_kwargs = self._keywords("import_kwargs", found.get("import_kwargs"), _TAKEN_KEYWORDS)
        args = self._positional("args", found.get("args"))
        # Both are parameters of the function that makes the tasks: each name may occur once.
        taken = {each.name: f"is a name in args, in line {each.line}" for each in args}
        kwargs = self._keywords("kwargs", found.get("kwargs"), taken)
        import_kwargs = self._with_defaults(import_args, import_kwargs, found.get("import_kwargs"))
        kind = self._type(root.line, found.get("type"))
        name, timeout = found.get("name"), found.get("timeout")
        return Template(
            self._file,
            kind,
            self._executables(kind, root.line, found.get("executables")),
            import_args,
            import_kwargs,
            args,
            kwargs,
            self._accesses("reads", found.get("reads")),
            self._accesses("writes", found.get("writes")),
            None if name is None else self._values.text(name, "name", typos=False),
            () if timeout is None else self._timeout(timeout),
        )

    def _type(self, line: int, node: YamlNode | None) -> str:
        if node is None:
            raise self._error(line, f"there is no 'type': expected {_list_words(TYPES)}")
        value = node.value if isinstance(node, YamlScalar) else None
        if not isinstance(value, str) or value not in TYPES:
            expected = f"expected {_list_words(TYPES)}"
            hint = did_you_mean(value.lower(), TYPES) if isinstance(value, str) else ""
            raise self._error(node.line, f"type is {describe_node(node)}: {expected}{hint}")
        return value

    # -- maps and lists -------------------------------------------------------------------

    def _map(self, node: YamlNode, what: str, known: Collection[str]) -> dict[str, YamlNode]:
        """Return the values of a map; a key without a value counts as left out."""
        if not isinstance(node, YamlMap):
            raise self._error(node.line, f"{what} is {describe_node(node)}: expected a map")
        for key, line, _ in node.entries:
            if key not in known:
                expected = f"expected {_list_words(known)}{did_you_mean(key, known)}"
                raise self._error(line, f"unknown key {key!r} in {what}: {expected}")
        return {
            key: value
            for key, _, value in node.entries
            if not (isinstance(value, YamlScalar) and value.value is None)
        }

    def _list(self, node: YamlNode, what: str, of: str) -> tuple[YamlNode, ...]:
        if not isinstance(node, YamlList):
            raise self._error(
                node.line, f"{what} is {describe_node(node)}: expected a list of {of}"
            )
        return node.items

    def _entries(self, node: YamlNode, what: str, of: str) -> tuple[tuple[str, int, YamlNode], ...]:
        if not isinstance(node, YamlMap):
            raise self._error(node.line, f"{what} is {describe_node(node)}: expected a map of {of}")
        return node.entries

    # -- declarations ---------------------------------------------------------------------

    def _positional(self, section: str, node: YamlNode | None) -> tuple[Parameter, ...]:
        items = () if node is None else self._list(node, section, "names")
        return tuple(self._declare(section, each) for each in items)

    def _keywords(
        self, section: str, node: YamlNode | None, taken: Mapping[str, str]
    ) -> tuple[Parameter, ...]:
        """Read keywords; `taken` has those that cannot be used, each with the reason."""
        entries = () if node is None else self._entries(node, section, "keywords to names")
        found, taken = [], dict(taken)
        for key, line, value in entries:
            keyword = identifier(key)
            if not keyword.isidentifier() or iskeyword(keyword):
                what = f"{keyword!r} in {section} is not a keyword: expected letters, digits and _"
                raise self._error(line, what)
            if keyword in taken:
                what = f"{keyword!r} in {section} {taken[keyword]}: expected another keyword"
                raise self._error(line, what)
            taken[keyword] = f"is there already, in line {line}"
            if section == "import_kwargs" and isinstance(value, YamlMap):
                # The map is a call that gives the default. Then the keyword is the name, too.
                value = YamlScalar(line, keyword, keyword, True)
            found.append(self._declare(section, value, keyword))
        return tuple(found)

    def _declare(self, section: str, node: YamlNode, keyword: str | None = None) -> Parameter:
        name = node.value if isinstance(node, YamlScalar) else None
        if not isinstance(name, str) or not (name := identifier(name)).isidentifier():
            or_call = ", or a call {function: [arguments]}" if section == "import_kwargs" else ""
            expected = f"a name of letters, digits and _{or_call}"
            what = f"{section} holds {describe_node(node)}: expected {expected}"
            raise self._error(node.line, what)
        if name in self._declared:
            what = f"{name!r} is declared already, in {self._declared[name]}"
            raise self._error(node.line, f"{what}: expected another name")
        if len(self._declared) == _MAX_NAMES:
            what = f"{name!r} is one too many: expected at most {_MAX_NAMES} arguments"
            raise self._error(node.line, f"{what}; pass a list or an object")
        self._declared[name] = f"{section} in line {node.line}"
        return Parameter(node.line, name, keyword)

    def _with_defaults(
        self, args: tuple[Parameter, ...], kwargs: tuple[Parameter, ...], node: YamlNode | None
    ) -> tuple[Parameter, ...]:
        """Read the defaults in import_kwargs, which may use the import arguments above them."""
        if not isinstance(node, YamlMap):
            return kwargs
        known = {parameter.name: "" for parameter in args}
        complete = []
        for parameter, (_, _, value) in zip(kwargs, node.entries, strict=True):
            if isinstance(value, YamlMap):
                values = ValueReader(self._file, known, self._declared.keys() - known.keys())
                parameter = replace(parameter, default=values.call(value))
            known[parameter.name] = ""
            complete.append(parameter)
        return tuple(complete)

    # -- executables ----------------------------------------------------------------------

    def _executables(self, kind: str, line: int, node: YamlNode | None) -> tuple[Executable, ...]:
        if node is None:
            what = "there are no 'executables': expected a list of maps, each with its 'target'"
            raise self._error(line, what)
        items = self._list(node, "executables", "maps, each with its 'target'")
        if not items:
            raise self._error(node.line, "executables is empty: expected at least one")
        if len(items) > 1 and kind != "job":
            what = f"a second executable: expected one, since the type is {kind}"
            raise self._error(items[1].line, f"{what}; only a job has several")
        return tuple(self._executable(kind, item) for item in items)

    def _executable(self, kind: str, node: YamlNode) -> Executable:
        found = self._map(node, f"an executable of a {kind}", _EXECUTABLE_KEYS[kind])
        if "target" not in found:
            raise self._error(node.line, "an executable lacks its 'target': expected what to run")
        if "num_procs" in found and "nprocs" in found:
            what = "num_procs and nprocs are the same: expected one of them"
            raise self._error(found["nprocs"].line, what)
        procs = found.get("num_procs", found.get("nprocs"))
        args, kwargs = found.get("args"), found.get("kwargs")
        cwd, env = found.get("cwd"), found.get("env")
        values = self._values
        return Executable(
            node.line,
            self._target(kind, found["target"]),
            tuple(map(values.any, self._list(args, "args", "values"))) if args else (),
            self._kwargs(kwargs) if kwargs else (),
            values.number(procs, "num_procs", 1, MAX_NUMBER, whole=True) if procs else None,
            values.text(cwd, "cwd") if cwd else None,
            self._env(env) if env else None,
        )

    def _target(self, kind: str, node: YamlNode) -> Expression:
        if kind == "function":
            expected = "the name of an argument that is a function"
            return self._values.reference(node, "target", expected)
        return self._values.text(node, "target", typos=False)

    def _kwargs(self, node: YamlNode) -> tuple[tuple[str, Expression], ...]:
        found: dict[str, Expression] = {}
        for key, line, value in self._entries(node, "kwargs", "values"):
            keyword = identifier(key)
            if keyword in found:
                raise self._error(line, f"{keyword!r} is in kwargs already: expected it once")
            found[keyword] = self._values.any(value)
        return tuple(found.items())

    def _env(self, node: YamlNode) -> Expression | EnvMap:
        if isinstance(node, YamlScalar):
            return self._values.reference(node, "env", "a map of texts, or the name of a dict")
        entries = self._entries(node, "env", "texts")
        key, _, value = entries[0] if len(entries) == 1 else ("", 0, node)
        if identifier(key) in self._declared and isinstance(value, YamlList):
            return self._values.any(node)
        found = []
        for key, line, value in entries:
            if not is_variable(key):
                raise self._error(line, f"{key!r} cannot be the name of an environment variable")
            found.append((key, self._values.text(value, f"{key} in env")))
        return EnvMap(node.line, tuple(found))

    # -- accesses, timeout ----------------------------------------------------------------

    def _accesses(self, section: str, node: YamlNode | None) -> tuple[FileAccess | KeyAccess, ...]:
        if node is None:
            return ()
        accesses: list[FileAccess | KeyAccess] = []
        expected = "'files', or 'ddict' and 'keys'"
        for item in self._list(node, section, f"maps with {expected}"):
            found = self._map(item, f"an item of {section}", ("files", "ddict", "keys"))
            if found.keys() not in ({"files"}, {"ddict"}, {"ddict", "keys"}):
                has = _list_words(found, "and") or "nothing"
                raise self._error(item.line, f"an item of {section} has {has}: expected {expected}")
            if "files" in found:
                files = self._at_least_one(found["files"], "files", "paths")
                accesses += [FileAccess(each.line, self._path(each)) for each in files]
                continue
            keys: tuple[YamlNode, ...] = ()
            if "keys" in found:
                keys = self._at_least_one(found["keys"], "keys", "keys")
            owner = self._values.reference(found["ddict"], "ddict", "the name of an argument")
            accesses.append(KeyAccess(item.line, owner, tuple(map(self._key, keys))))
        return tuple(accesses)

    def _at_least_one(self, node: YamlNode, what: str, of: str) -> tuple[YamlNode, ...]:
        items = self._list(node, what, of)
        if not items:
            raise self._error(node.line, f"{what} is empty: expected a list of {of}")
        return items

    def _path(self, node: YamlNode) -> Expression:
        if not isinstance(node, YamlList):
            return self._values.text(node, "an item of files")
        if len(node.items) != 2:
            what = f"a list of {len(node.items)} among files: expected a path, or [base_dir, name]"
            raise self._error(node.line, what)
        return ListExpression(
            node.line, tuple(self._values.text(each, "a path") for each in node.items)
        )

    def _key(self, node: YamlNode) -> Expression:
        if isinstance(node, YamlList):
            raise self._error(node.line, "a list among keys: expected a text, a number or a call")
        return self._values.any(node)

    def _timeout(self, node: YamlNode) -> tuple[tuple[str, Expression], ...]:
        if not isinstance(node, YamlMap):
            what = f"timeout is {describe_node(node)}: expected a map such as {{min: 1, sec: 30}}"
            raise self._error(node.line, what)
        parts = tuple(
            (unit, self._values.number(value, f"{unit} in timeout", 0, MAX_NUMBER))
            for unit, value in self._map(node, "timeout", UNITS).items()
        )
        if all(isinstance(part, Literal) and not part.value for _, part in parts):
            what = "timeout adds up to 0: leave it out if a task may run without a limit"
            raise self._error(node.line, what)
        return parts


def _list_words(words: Collection[str], last: str = "or") -> str:
    quoted = [repr(word) for word in words]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"
