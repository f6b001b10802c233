"""Puts arguments into a template: what comes out describes one task, and never changes.

Does not know how tasks are made or run. All that can be settled at import is settled there, and
nothing is kept from one call to the next, so that any number of threads may call at once.
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
    always,
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
    TARGETS,
    a_count,
    a_directory,
    a_duration,
    a_name,
    a_path,
    a_text,
    an_environment,
    checked,
)
from daskbatch.errors import SpecError


class ChannelUse(NamedTuple):
    """Something that is read or written, as `Batch.read` takes it."""

    line: int
    object: Any
    channels: tuple[Any, ...]


class FilledExecutable(NamedTuple):
    """What is run."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    num_procs: int
    cwd: str | Path | None
    env: dict[str, str] | None


class TaskDescription(NamedTuple):
    """One task, as a template and the arguments of a call describe it."""

    type: str
    name: str | None
    timeout: float | None
    executables: tuple[FilledExecutable, ...]
    reads: tuple[ChannelUse, ...]
    writes: tuple[ChannelUse, ...]


class BoundTemplate:
    """A template with its import arguments, to be filled by calls.

    Parameters
    ----------
    template : Template
        What the file says.
    args, kwargs
        The import arguments.

    Raises
    ------
    SpecError
        An import argument is missing, too many, or of the wrong type.

    Examples
    --------
    >>> from daskbatch.describe.template.reader import parse_template
    >>> text = b"{args: [day], type: process, executables: [{target: cal, args: [-1, day]}]}"
    >>> form = Form(parse_template(text, "my.yml"), (), {})
    >>> form.fill((24,), {}).executables[0].args
    (-1, 24)
    """

    def __init__(self, template: Template, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        used = template.uses()
        known = _import_arguments(template, used, args, kwargs)
        # The slots come first: what is known of the name and the target makes the label.
        parameters = (*template.args, *template.kwargs)
        scope = Scope(template.file, known, {each.name: n for n, each in enumerate(parameters)})
        name = checked(scope, template.name, a_name)
        timeout = _timeout(scope, template.timeout)
        executables = [_Executable(scope, template.type, each) for each in template.executables]
        self.template = template
        #: What to call the function that makes the tasks.
        self.label = _label(template.file, name, executables[0].target)
        #: Whether all calls share timeout, directory and environment.
        self.steady = isinstance(timeout, Constant) and all(each.steady for each in executables)
        self._arguments = Arguments(self.label, template.file, template.args, template.kwargs, used)
        self.signature = self._arguments.signature()
        self._take = self._arguments.take
        self._type = template.type
        self._name = always(name)
        self._timeout = always(timeout)
        self._executables = _all([each.step() for each in executables])
        self._reads = _all([_use(scope, each) for each in template.reads])
        self._writes = _all([_use(scope, each) for each in template.writes])

    def fill(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> TaskDescription:
        """Put the arguments of a call in.

        Raises
        ------
        SpecError
            An argument is missing, too many, or of the wrong type.
        """
        given = self._take(args, kwargs)
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


#: Makes a named tuple in half the time: it is done for each task.
_new = tuple.__new__


def _all(steps: Sequence[Evaluator]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Give the values of all steps."""
    if not steps:
        return lambda given: ()
    if len(steps) == 1:
        (step,) = steps
        return lambda given: (step(given),)
    return lambda given: tuple([step(given) for step in steps])


def _import_arguments(
    template: Template, used: Mapping[str, int], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Give the import arguments by name; where one is left out, its call gives it."""
    arguments = Arguments(
        "import_func", template.file, template.import_args, template.import_kwargs, used
    )
    found = arguments.named(args, kwargs)
    needed = dict(used)
    calls: list[tuple[str, Expression]] = []
    for each in reversed(template.import_kwargs):
        if each.default is not None and each.name in needed and each.name not in found:
            calls.append((each.name, each.default))
            del needed[each.name]
            for name, line in names(each.default):
                needed.setdefault(name, line)
    arguments.require(found, needed)
    for name, call in reversed(calls):
        found[name] = always(Scope(template.file, found, {}).step(call))(())
    return found


def _label(file: str, name: Evaluator | Constant, target: Evaluator | Constant) -> str:
    if isinstance(name, Constant) and name.value is not None:
        return str(name.value)
    if isinstance(target, Constant) and callable(target.value):
        return str(getattr(target.value, "__name__", type(target.value).__name__))
    return Path(file).stem


#: How many processes an executable has that says nothing.
_ONE = Literal(0, 1)


# -- parts --------------------------------------------------------------------------------


class _Executable:
    """Fills one executable."""

    def __init__(self, scope: Scope, kind: str, executable: Executable) -> None:
        self.target = checked(scope, executable.target, TARGETS[kind])
        self._args = scope.steps(executable.args)
        self._keywords = [keyword for keyword, _ in executable.kwargs]
        self._kwargs = scope.steps([value for _, value in executable.kwargs])
        self._num_procs = checked(scope, executable.num_procs or _ONE, a_count)
        self._cwd = checked(scope, executable.cwd, a_directory)
        self._env = _env(scope, executable.env)
        self._where = f"{scope.file}:{executable.line}"
        #: Whether all calls share directory and environment.
        self.steady = isinstance(self._cwd, Constant) and isinstance(self._env, Constant)

    def step(self) -> Evaluator:
        """Make the step that gives what is run."""
        args, keywords, kwargs = self._args, self._keywords, self._kwargs
        target, num_procs = always(self.target), always(self._num_procs)
        cwd, env = always(self._cwd), always(self._env)

        def fill(given: Sequence[Any]) -> FilledExecutable:
            what, named = target(given), {}
            if keywords:
                self._require_function(what)
                named = dict(zip(keywords, kwargs(given), strict=True))
            return _new(
                FilledExecutable,
                (what, args(given), named, num_procs(given), cwd(given), env(given)),
            )

        settled = [self.target, self._num_procs, self._cwd, self._env]
        if keywords or not all(isinstance(each, Constant) for each in settled):
            return fill
        what, count, where, variables = (
            each.value for each in settled if isinstance(each, Constant)
        )
        return lambda given: _new(
            FilledExecutable, (what, args(given), {}, count, where, variables)
        )

    def _require_function(self, target: object) -> None:
        if not callable(target):
            raise SpecError(
                f"{self._where}: target is {describe(target)}, and an executable takes no kwargs: "
                "expected a function there, or args alone"
            )


def _use(scope: Scope, access: FileAccess | KeyAccess) -> Callable[[Sequence[Any]], ChannelUse]:
    line = access.line
    if isinstance(access, KeyAccess):
        owner, keys = always(scope.step(access.object)), scope.steps(access.keys)
        where = f"{scope.file}:{line}"

        def use_keys(given: Sequence[Any]) -> ChannelUse:
            obj = owner(given)
            if isinstance(obj, (str, Path)):
                raise SpecError(
                    f"{where}: ddict is {describe(obj)}: expected a dictionary or another object "
                    "of channels; for paths write 'files'"
                )
            return ChannelUse(line, obj, keys(given))

        return use_keys
    step = checked(scope, access.item, a_path)
    if isinstance(step, Constant):
        use = ChannelUse(line, *step.value)
        return lambda given: use
    return lambda given: _new(ChannelUse, (line, *step(given)))


def _timeout(scope: Scope, parts: Sequence[tuple[str, Expression]]) -> Evaluator | Constant:
    steps = [(checked(scope, part, a_duration), UNITS[unit]) for unit, part in parts]
    if not steps:
        return Constant(None)
    calls = [(always(step), seconds) for step, seconds in steps]
    where = f"{scope.file}:{parts[0][1].line}"

    def total(given: Sequence[Any]) -> float:
        seconds: float = sum(float(call(given)) * unit for call, unit in calls)
        if not seconds:
            raise SpecError(f"{where}: timeout adds up to 0: expected some time")
        return seconds

    return Constant(total(())) if all(isinstance(step, Constant) for step, _ in steps) else total


def _env(scope: Scope, env: Expression | EnvMap | None) -> Evaluator | Constant:
    if not isinstance(env, EnvMap):
        return checked(scope, env, an_environment)
    keys = [key for key, _ in env.entries]
    values = [checked(scope, value, a_text) for _, value in env.entries]
    if all(isinstance(value, Constant) for value in values):
        return Constant(
            {k: v.value for k, v in zip(keys, values, strict=True) if isinstance(v, Constant)}
        )
    calls = [always(value) for value in values]
    return lambda given: {key: call(given) for key, call in zip(keys, calls, strict=True)}
