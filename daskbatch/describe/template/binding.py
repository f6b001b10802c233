"""Fills a template with arguments; the result describes one task.

A template is bound to its import arguments once. What depends on these alone is evaluated and
checked then. A call fills in the rest. Nothing is kept from one call to the next, so any number of
threads may call at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from daskbatch.describe.template.arguments import Arguments
from daskbatch.describe.template.expressions import (
    Constant,
    Evaluator,
    Expression,
    Literal,
    Scope,
    as_evaluator,
    describe,
    names,
)
from daskbatch.describe.template.model import (
    UNITS,
    EnvMap,
    Executable,
    FileAccess,
    KeyAccess,
    Template,
)
from daskbatch.describe.template.validators import (
    TARGET_CHECKS,
    check_count,
    check_directory,
    check_duration,
    check_environment,
    check_name,
    check_path,
    check_variable,
    compile_checked,
)
from daskbatch.errors import SpecError
from daskbatch.serialization.safe_text import callable_name


class ChannelUse(NamedTuple):
    """An object, and the channels of it that a task reads or writes, as `Batch.read` takes them."""

    #: The line of the file that declares it.
    line: int
    object: Any
    channels: tuple[Any, ...]


class FilledExecutable(NamedTuple):
    """A function or an executable to run, with its arguments."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    num_procs: int
    cwd: str | Path | None
    env: dict[str, str] | None


class TaskDescription(NamedTuple):
    """One task, as a template and the arguments of a call describe it."""

    #: One of `model.TYPES`.
    type: str
    #: None for the name of the target.
    name: str | None
    #: In seconds.
    timeout: float | None
    executables: tuple[FilledExecutable, ...]
    reads: tuple[ChannelUse, ...]
    writes: tuple[ChannelUse, ...]


class BoundTemplate:
    """A template with its import arguments. Any number of threads may fill it.

    Parameters
    ----------
    template : Template
        The content of the file.
    args, kwargs
        The import arguments.

    Raises
    ------
    SpecError
        An import argument is missing, is not declared, or has the wrong type.

    Examples
    --------
    >>> from daskbatch.describe.template.reader import parse_template
    >>> text = b"{args: [day], type: process, executables: [{target: cal, args: [-1, day]}]}"
    >>> template = BoundTemplate(parse_template(text, "my.yml"), (), {})
    >>> template.fill((24,), {}).executables[0].args
    (-1, 24)
    """

    def __init__(self, template: Template, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        used = template.uses()
        known = _import_arguments(template, used, args, kwargs)
        # Compiled before the arguments of a call are declared: messages about these need the
        # label, which is the name or the target if that is constant.
        parameters = (*template.args, *template.kwargs)
        scope = Scope(template.file, known, {each.name: n for n, each in enumerate(parameters)})
        name = compile_checked(scope, template.name, check_name)
        timeout = _compile_timeout(scope, template.timeout)
        executables = [_Executable(scope, template.type, each) for each in template.executables]
        self.template = template
        #: The name of the function that makes the tasks.
        self.label = _make_label(template.file, name, executables[0].target)
        #: Whether timeout, directory and environment are the same for all calls.
        self.has_constant_options = isinstance(timeout, Constant) and all(
            each.has_constant_options for each in executables
        )
        self._arguments = Arguments(self.label, template.file, template.args, template.kwargs, used)
        self.signature = self._arguments.signature()
        self._in_order = self._arguments.in_order
        self._type = template.type
        self._name = as_evaluator(name)
        self._timeout = as_evaluator(timeout)
        self._executables = _combine([each.evaluator() for each in executables])
        self._reads = _combine([_compile_access(scope, each) for each in template.reads])
        self._writes = _combine([_compile_access(scope, each) for each in template.writes])

    def fill(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TaskDescription:
        """Fill in the arguments of a call.

        Raises
        ------
        SpecError
            An argument is missing, is not declared, or has the wrong type.
        """
        given = self._in_order(args, kwargs)
        return _new(
            TaskDescription,
            (
                self._type,
                self._name(given),
                self._timeout(given),
                self._executables(given),
                self._reads(given),
                self._writes(given),
            ),
        )


#: Makes a named tuple in half the time that its constructor takes: each task needs several.
_new = tuple.__new__


def _combine(evaluators: Sequence[Evaluator]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Make one evaluator, which returns the tuple of all values."""
    if not evaluators:
        return lambda given: ()
    if len(evaluators) == 1:
        (evaluate,) = evaluators
        return lambda given: (evaluate(given),)
    return lambda given: tuple([evaluate(given) for evaluate in evaluators])


def _import_arguments(
    template: Template, used: Mapping[str, int], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the import arguments by name; calls the default of each that is left out."""
    arguments = Arguments(
        "import_func", template.file, template.import_args, template.import_kwargs, used
    )
    found = arguments.by_name(args, kwargs)
    needed = dict(used)
    defaults: list[tuple[str, Expression]] = []
    for each in reversed(template.import_kwargs):
        if each.default is not None and each.name in needed and each.name not in found:
            defaults.append((each.name, each.default))
            del needed[each.name]
            for name, line in names(each.default):
                needed.setdefault(name, line)
    arguments.require(found, needed)
    for name, default in reversed(defaults):
        found[name] = as_evaluator(Scope(template.file, found, {}).compile(default))(())
    return found


def _make_label(file: str, name: Evaluator | Constant, target: Evaluator | Constant) -> str:
    if isinstance(name, Constant) and name.value is not None:
        return str(name.value)
    if isinstance(target, Constant) and callable(target.value):
        return callable_name(target.value)
    return Path(file).stem


#: The number of processes of an executable without ``num_procs``.
_ONE_PROCESS = Literal(0, 1)


# -- parts --------------------------------------------------------------------------------


class _Executable:
    """One executable of a template, compiled; its evaluator returns a `FilledExecutable`."""

    def __init__(self, scope: Scope, kind: str, executable: Executable) -> None:
        self.target = compile_checked(scope, executable.target, TARGET_CHECKS[kind])
        self._args = scope.compile_all(executable.args)
        self._keywords = [keyword for keyword, _ in executable.kwargs]
        self._kwargs = scope.compile_all([value for _, value in executable.kwargs])
        self._num_procs = compile_checked(scope, executable.num_procs or _ONE_PROCESS, check_count)
        self._cwd = compile_checked(scope, executable.cwd, check_directory)
        self._env = _compile_env(scope, executable.env)
        self._where = f"{scope.file}:{executable.line}"
        #: Whether directory and environment are the same for all calls.
        self.has_constant_options = isinstance(self._cwd, Constant) and isinstance(
            self._env, Constant
        )

    def evaluator(self) -> Evaluator:
        """Make the evaluator that returns a `FilledExecutable`."""
        args, keywords, kwargs = self._args, self._keywords, self._kwargs
        get_target, get_num_procs = as_evaluator(self.target), as_evaluator(self._num_procs)
        get_cwd, get_env = as_evaluator(self._cwd), as_evaluator(self._env)

        def fill(given: Sequence[Any]) -> FilledExecutable:
            target, named = get_target(given), {}
            if keywords:
                self._require_function(target)
                named = dict(zip(keywords, kwargs(given), strict=True))
            return _new(
                FilledExecutable,
                (target, args(given), named, get_num_procs(given), get_cwd(given), get_env(given)),
            )

        parts = [self.target, self._num_procs, self._cwd, self._env]
        if keywords or not all(isinstance(each, Constant) for each in parts):
            return fill
        target, num_procs, cwd, env = (each.value for each in parts if isinstance(each, Constant))
        return lambda given: _new(FilledExecutable, (target, args(given), {}, num_procs, cwd, env))

    def _require_function(self, target: object) -> None:
        if not callable(target):
            raise SpecError(
                f"{self._where}: target is {describe(target)}, and an executable takes no kwargs: "
                "expected a function there, or args alone"
            )


def _compile_access(
    scope: Scope, access: FileAccess | KeyAccess
) -> Callable[[Sequence[Any]], ChannelUse]:
    line = access.line
    if isinstance(access, KeyAccess):
        get_object = as_evaluator(scope.compile(access.object))
        get_keys = scope.compile_all(access.keys)
        where = f"{scope.file}:{line}"

        def use_keys(given: Sequence[Any]) -> ChannelUse:
            obj = get_object(given)
            if isinstance(obj, (str, Path)):
                raise SpecError(
                    f"{where}: ddict is {describe(obj)}: expected a dictionary or another object "
                    "of channels; for paths write 'files'"
                )
            return ChannelUse(line, obj, get_keys(given))

        return use_keys
    evaluate = compile_checked(scope, access.item, check_path)
    if isinstance(evaluate, Constant):
        use = ChannelUse(line, *evaluate.value)
        return lambda given: use
    return lambda given: _new(ChannelUse, (line, *evaluate(given)))


def _compile_timeout(scope: Scope, parts: Sequence[tuple[str, Expression]]) -> Evaluator | Constant:
    values = [(compile_checked(scope, part, check_duration), UNITS[unit]) for unit, part in parts]
    if not values:
        return Constant(None)
    evaluators = [(as_evaluator(value), seconds) for value, seconds in values]
    where = f"{scope.file}:{parts[0][1].line}"

    def total(given: Sequence[Any]) -> float:
        seconds: float = sum(float(evaluate(given)) * unit for evaluate, unit in evaluators)
        if not seconds:
            raise SpecError(f"{where}: timeout adds up to 0: expected some time")
        return seconds

    return Constant(total(())) if all(isinstance(value, Constant) for value, _ in values) else total


def _compile_env(scope: Scope, env: Expression | EnvMap | None) -> Evaluator | Constant:
    if not isinstance(env, EnvMap):
        return compile_checked(scope, env, check_environment)
    keys = [key for key, _ in env.entries]
    values = [compile_checked(scope, value, check_variable) for _, value in env.entries]
    if all(isinstance(value, Constant) for value in values):
        return Constant(
            {k: v.value for k, v in zip(keys, values, strict=True) if isinstance(v, Constant)}
        )
    evaluators = [as_evaluator(value) for value in values]
    return lambda given: {
        key: evaluate(given) for key, evaluate in zip(keys, evaluators, strict=True)
    }
