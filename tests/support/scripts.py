"""Makes random small scripts, runs their functions elsewhere, and compares that with one process.

A script defines classes, enumerations, dataclasses, generic types, closures, decorators and more,
and a function ``probe`` that uses all of them. `check` has a process that runs tasks call
``probe``, and sends each value of the script there and back.
"""

from __future__ import annotations

import math
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import pack_error, unpack_error
from daskbatch.serialization.pickled_values import pack_values
from daskbatch.worker.execution.block import BlockSpec
from daskbatch.worker.execution.outcome import Status

HEADER = """\
import abc, contextlib, dataclasses, enum, functools, inspect, pickle, typing
import email.mime.text, xml.dom.minidom
counter = {seed}
registry = {{}}

def describe(make):
    try:
        return repr(make())
    except Exception as error:
        return type(error).__name__

def travels(value):
    again = pickle.loads(pickle.dumps(value))
    return type(again) is type(value) and (again is value or not isinstance(value, type))
"""


class Script:
    """The text of a script while it is made.

    Attributes
    ----------
    values : list of str
        Expressions whose values are definitions, which return as themselves.
    objects : list of str
        Expressions whose values are objects, which return as equals.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        #: Whether annotations are texts, as `from __future__ import annotations` makes them.
        self.texts = self.flip()
        self.parts = [HEADER.format(seed=seed % 97)]
        self.values: list[str] = []
        self.objects: list[str] = []
        self.probes: list[str] = []
        self.classes: list[str] = []

    def flip(self) -> bool:
        return self.random.random() < 0.5

    def name(self, stem: str) -> str:
        return f"{stem}{len(self.parts)}"

    def later(self, annotation: str) -> str:
        """Return an annotation that names what is not defined yet, or never."""
        is_deferred = self.texts or sys.version_info >= (3, 14)  # PEP 649
        return annotation if is_deferred and self.flip() else repr(annotation)

    def text(self) -> str:
        probes = "".join(f"        lambda: ({each}),\n" for each in self.probes)
        checks = "".join(f"        lambda: travels({each}),\n" for each in self.values)
        return "\n".join(
            [
                *(["from __future__ import annotations"] if self.texts else []),
                *self.parts,
                f"def probe():\n    return [describe(each) for each in [\n{probes}{checks}    ]]\n",
                "def same(value):\n    return value\n",
                f"values = [{', '.join(self.values)}]",
                f"objects = [{', '.join(self.objects)}]",
            ]
        )


def plain_class(script: Script) -> None:
    name = script.name("Plain")
    bases = script.random.sample(
        script.classes, min(len(script.classes), script.random.randint(0, 1))
    )
    lines = [f"class {name}({', '.join(bases)}):", f"    '''About {name}.'''"]
    slots = script.flip()
    if slots:
        lines.append("    __slots__ = ('value', '__hidden')")
    if script.flip():
        lines.append("    version = 1")
    lines += [
        "    def __init__(self, value=3):",
        "        self.value = value",
        "        self.__hidden = value + 1",
        "    def hidden(self): return self.__hidden",
        "    def __eq__(self, other):",
        "        return type(other) is type(self) and other.value == self.value",
        "    def __hash__(self): return hash(self.value)",
        "    def get(self): return self.value + counter",
        "    @property",
        "    def double(self): return self.value * 2",
        "    @double.setter",
        "    def double(self, value): self.value = value // 2",
        "    @classmethod",
        "    def make(cls, value): return cls(value)",
        "    @staticmethod",
        f"    def kind(): return {name}.__name__",
        "    def parent(self): return [each.__name__ for each in __class__.__mro__]",
    ]
    if script.flip():
        lines += ["    class Inner:", "        depth = 2"]
        script.values.append(f"{name}.Inner")
        script.probes.append(f"{name}.Inner.__qualname__")
    script.parts.append("\n".join(lines))
    script.classes.append(name)
    script.values += [name, f"{name}.get"]
    script.objects.append(f"{name}({script.random.randint(0, 9)})")
    script.probes += [
        f"{name}(4).get()",
        f"{name}(4).hidden()",
        f"{name}.make(5).double",
        f"setattr({name}(), 'unknown', 1)",
        f"{name}.kind(), {name}().parent(), {name}.__doc__, {name}.__module__",
        f"getattr({name}, 'version', None)",
    ]
    if bases:
        script.probes.append(f"issubclass({name}, {bases[0]})")


def enumeration(script: Script) -> None:
    name = script.name("Enum")
    kind = script.random.choice(["Enum", "IntEnum", "Flag", "IntFlag", "StrEnum", "str, enum.Enum"])
    lines = [f"class {name}(enum.{kind}):" if "," not in kind else f"class {name}({kind}):"]
    if kind in ("Flag", "IntFlag"):
        lines += ["    NONE = 0", "    READ = 1", "    WRITE = 4", "    BOTH = READ | WRITE"]
        first, other = "READ", "BOTH"
        script.probes += [f"{name}.READ | {name}.WRITE", f"~{name}.READ", f"{name}(0), {name}(5)"]
        script.objects.append(f"{name}.READ | {name}.WRITE")
    elif kind == "Enum" and script.flip():
        lines += ["    A = 1, 'one'", "    B = 2, 'two'"]
        if script.flip():
            lines += ["    def __init__(self, number, word):", "        self.word = word"]
        else:
            lines += [
                "    def __new__(cls, number, word):",
                "        made = object.__new__(cls)",
                "        made._value_ = number",
                "        made.word = word",
                "        return made",
            ]
        first, other = "A", "B"
        script.probes.append(f"{name}.A.word, {name}.B.value")
    else:
        values = ("'a'", "'b'") if "tr" in kind else ("1", "2")
        lines += [f"    A = {values[0]}", f"    B = {values[1]}", f"    ALIAS = {values[0]}"]
        first, other = "A", "ALIAS"
    if script.flip():
        lines += ["    def shout(self): return self.name + '!'"]
        script.probes.append(f"{name}.{first}.shout()")
    script.parts.append("\n".join(lines))
    script.values += [name, f"{name}.{first}", f"{name}.{other}"]
    script.probes += [
        f"list({name}), list({name}.__members__), {name}.{other}",
        f"{name}[{first!r}] is {name}.{first}, {name}({name}.{first}.value) is {name}.{first}",
        f"hash({name}.{first}) == hash({name}.{first}), str({name}.{first})",
    ]


def dataclass(script: Script) -> None:
    name = script.name("Data")
    options = [
        each
        for each in ("frozen=True", "order=True", "slots=True", "kw_only=True", "unsafe_hash=True")
        if script.random.random() < 0.3
    ]
    script.parts.append(
        f"@dataclasses.dataclass({', '.join(options)})\nclass {name}:\n"
        "    number: int\n"
        "    items: list = dataclasses.field(default_factory=list)\n"
        "    word: str = dataclasses.field(default='w', metadata={'unit': 'm'})\n"
        "    limit: typing.ClassVar[int] = 7\n"
        "    def total(self): return self.number + len(self.items) + counter"
    )
    script.values.append(name)
    script.objects.append(f"{name}(number=2, items=[1])")
    script.probes += [
        f"{name}(number=1), {name}(number=1) == {name}(number=1), {name}(number=3).total()",
        f"{name}(number=1) < {name}(number=2)",
        f"hash({name}(number=1, items=())) == hash({name}(number=1, items=()))",
        f"[(f.name, f.default is dataclasses.MISSING) for f in dataclasses.fields({name})]",
        f"[dict(f.metadata) for f in dataclasses.fields({name})]",
        f"dataclasses.replace({name}(number=1), number=5), dataclasses.asdict({name}(number=1))",
        f"setattr({name}(number=1), 'number', 2)",
        f"dataclasses.make_dataclass('Sub', [('z', int, 1)], bases=({name},), kw_only=True)"
        "(number=1).z",
    ]


def generic(script: Script) -> None:
    name, variable = script.name("Box"), script.name("T")
    script.parts.append(
        f"{variable} = typing.TypeVar({variable!r})\n"
        f"Id{name} = typing.NewType('Id{name}', int)\n"
        f"P{name} = typing.ParamSpec('P{name}')\n"
        f"class {name}(typing.Generic[{variable}]):\n"
        f"    def __init__(self, value: {variable}): self.value = value\n"
        f"    def get(self) -> {variable}: return self.value\n"
        f"class Int{name}({name}[int]): pass\n"
        f"class Pair{name}(typing.NamedTuple):\n"
        "    left: int\n    right: str = 'r'\n"
        "    def both(self): return self.left, self.right\n"
        f"class Dict{name}(typing.TypedDict, total=False):\n    key: int\n"
        "@typing.runtime_checkable\n"
        f"class Proto{name}(typing.Protocol):\n    def get(self) -> int: ..."
    )
    script.values += [variable, f"Id{name}", f"P{name}", name, f"Int{name}", f"Pair{name}"]
    script.values += [f"Dict{name}", f"Proto{name}"]
    script.objects.append(f"Pair{name}(1)")
    script.probes += [
        f"{name}(3).get(), Int{name}(4).value, Id{name}(5)",
        f"{name}.__parameters__ == ({variable},), Int{name}.__orig_bases__ == ({name}[int],)",
        f"typing.get_type_hints({name}.get)['return'] is {variable}",
        f"Pair{name}(1).both(), Pair{name}._fields, Dict{name}(key=1), Dict{name}.__total__",
        f"isinstance({name}(1), Proto{name}), isinstance(1, Proto{name})",
        f"typing.get_type_hints(Pair{name})",
    ]


def functions(script: Script) -> None:
    name = script.name("call")
    script.parts.append(
        f"def deco{name}(function):\n"
        "    @functools.wraps(function)\n"
        "    def wrapper(*args):\n"
        "        wrapper.calls += 1\n"
        "        return function(*args)\n"
        "    wrapper.calls = 0\n"
        "    return wrapper\n"
        f"@deco{name}\n"
        f"def {name}(value=2):\n    '''Adds.'''\n    return value + counter\n"
        "@functools.lru_cache(maxsize=8)\n"
        f"def fib{name}(n): return n if n < 2 else fib{name}(n - 1) + fib{name}(n - 2)\n"
        "@functools.singledispatch\n"
        f"def show{name}(value): return 'any'\n"
        f"@show{name}.register\n"
        f"def _(value: list): return [show{name}(each) for each in value]\n"
        f"@show{name}.register(int)\n"
        "def _(value): return 'int'\n"
        f"def adder{name}(n):\n    def add(m): return n + m + counter\n    return add\n"
        f"add{name} = adder{name}({script.random.randint(0, 9)})\n"
        "@contextlib.contextmanager\n"
        f"def context{name}(): yield counter\n"
        f"def generate{name}(n): yield from (each * counter for each in range(n))\n"
        f"registry[{name}] = add{name}"
    )
    script.values += [name, f"deco{name}", f"fib{name}", f"show{name}", f"adder{name}"]
    script.values += [f"context{name}", f"generate{name}"]
    script.probes += [
        f"{name}(), {name}.__doc__, {name}.__name__, {name}.__wrapped__(1)",
        f"fib{name}(20), fib{name}.cache_info().maxsize",
        f"show{name}([1, 'a', [2]]), show{name}.dispatch(int) is show{name}.registry[int]",
        f"add{name}(1), adder{name}(2)(3), registry[{name}] is add{name}",
        f"context{name}().__enter__(), list(generate{name}(3))",
        "xml.dom.minidom.parseString('<a/>').documentElement.tagName",
        "(lambda: [email.mime.text.MIMEText(t).get_content_type() for t in 'x'])()",
    ]


def hooks(script: Script) -> None:
    name = script.name("Hook")
    script.parts.append(
        f"class Named{name}:\n"
        "    def __set_name__(self, owner, name): self.name = name\n"
        "    def __get__(self, obj, owner=None):\n"
        "        return self if obj is None else obj.__dict__.get(self.name, 'unset')\n"
        "    def __set__(self, obj, value): obj.__dict__[self.name] = value\n"
        f"class {name}:\n"
        "    subclasses = {}\n"
        f"    field = Named{name}()\n"
        "    def __init_subclass__(cls, *, key, **keywords):\n"
        "        super().__init_subclass__(**keywords)\n"
        f"        {name}.subclasses[key] = cls\n"
        "    @functools.cached_property\n"
        "    def lazy(self): return counter + 1\n"
        "    @functools.singledispatchmethod\n"
        "    def show(self, value): return 'any'\n"
        "    @show.register\n"
        "    def _(self, value: int): return 'int'\n"
        "    @functools.partialmethod\n"
        "    def part(self): return 4\n"
        f"class Sub{name}({name}, key='sub'): pass\n"
        f"class Deep{name}(Sub{name}, key='deep'):\n    __slots__ = ('extra',)"
    )
    script.values += [f"Named{name}", name, f"Sub{name}", f"Deep{name}"]
    script.probes += [
        f"sorted({{*{name}.subclasses}} - {{'new'}}), {name}.subclasses['deep'] is Deep{name}",
        f"{name}().lazy, {name}().field, {name}.field.name, {name}().show(1), {name}().show('')",
        f"type('New', ({name},), {{}}, key='new').__name__, sorted({name}.subclasses)",
        f"type('New', ({name},), {{}})",
    ]


def metaclass(script: Script) -> None:
    name = script.name("Meta")
    script.parts.append(
        f"class {name}({script.random.choice(['type', 'abc.ABCMeta'])}):\n"
        "    made = []\n"
        "    def __new__(mcs, name, bases, space, flag=None, **keywords):\n"
        "        kind = super().__new__(mcs, name, bases, space)\n"
        "        kind.flag = flag\n"
        f"        {name}.made.append(name)\n"
        "        return kind\n"
        "    def __init__(cls, name, bases, space, flag=None, **keywords):\n"
        "        super().__init__(name, bases, space)\n"
        "        if 'must' not in space: raise TypeError('must')\n"
        "    def __call__(cls, *args):\n"
        "        made = super().__call__(*args)\n"
        "        made.called = True\n"
        "        return made\n"
        "    def __len__(cls): return 3\n"
        f"class Of{name}(metaclass={name}, flag={script.random.randint(1, 9)}):\n    must = 1\n"
        f"class Abstract{name}(abc.ABC):\n"
        "    @abc.abstractmethod\n"
        "    def run(self): ...\n"
        f"class Concrete{name}(Abstract{name}):\n    def run(self): return counter\n"
        f"@Abstract{name}.register\nclass Virtual{name}: pass"
    )
    script.values += [name, f"Of{name}", f"Abstract{name}", f"Concrete{name}", f"Virtual{name}"]
    script.probes += [
        f"Of{name}.flag, {name}.made[:1], Of{name}().called, len(Of{name})",
        f"Abstract{name}()",
        f"Concrete{name}().run(), isinstance(Virtual{name}(), Abstract{name})",
    ]


def main_module(script: Script) -> None:
    name = script.name("look")
    script.parts.append(
        f"class Sentinel{name}:\n"
        f"    def __reduce__(self): return 'MISSING{name}'\n"
        f"MISSING{name} = Sentinel{name}()\n"
        f"def {name}():\n"
        "    import __main__\n"
        f"    return __main__.counter, __main__.{name} is {name}"
    )
    script.values += [name, f"MISSING{name}"]
    script.probes += [f"{name}()", f"pickle.loads(pickle.dumps(MISSING{name})) is MISSING{name}"]


def forward_references(script: Script) -> None:
    name, unknown = script.name("Node"), script.name("Unknown")
    later = script.later
    script.parts.append(
        f"class {name}:\n"
        f"    following: {later(name)}\n"
        f"    inner: {later('Inner')}\n"
        "    class Inner: pass\n"
        f"    def link(self, other: {later(name)}, more: {later(unknown)} = 1) "
        f"-> {later('Inner')}:\n"
        "        return more\n"
        f"class Lost{name}({name}):\n"
        f"    here: int\n    lost: {later(unknown)}\n"
        f"class Set{name}: pass\n"
        f"Set{name}.__annotations__ = {{'set': {name}}}\n"
        f"@dataclasses.dataclass({script.random.choice(['', 'slots=True', 'frozen=True'])})\n"
        f"class Data{name}:\n"
        f"    following: {later(f'Data{name} | None')} = None\n"
        f"    lost: {later(unknown)} = 3\n"
        f"class Tuple{name}(typing.NamedTuple):\n"
        f"    following: {later(f'Tuple{name} | None')} = None\n"
        f"    lost: {later(unknown)} = 4\n"
        f"class Dict{name}(typing.TypedDict):\n"
        f"    following: {later(f'Dict{name}')}\n    lost: {later(unknown)}\n"
        f"class Protocol{name}(typing.Protocol):\n"
        f"    lost: {later(unknown)}\n    def get(self) -> {later(f'Protocol{name}')}: ...\n"
        f"def use{name}(value: {later(unknown)}, *, other: {later(name)} = None) -> int:\n"
        "    return value + 1\n"
        f"def closed{name}():\n"
        f"    class Closed: pass\n"
        f"    def within(value: Closed, other: {later(unknown)} = 5): return other\n"
        f"    return within\n"
        f"within{name} = closed{name}()"
    )
    names = [*(name, f"Lost{name}", f"Set{name}", f"Data{name}", f"Tuple{name}"), f"Dict{name}"]
    names += [f"Protocol{name}", f"use{name}", f"within{name}", f"{name}.link"]
    script.values += names
    script.objects += [f"Data{name}(Data{name}())", f"Tuple{name}(Tuple{name}())"]
    script.probes += [
        f"{name}().link(None), use{name}(2), within{name}(None), Data{name}(), Tuple{name}()",
        f"typing.get_type_hints({name})['following'] is {name}",
        f"[(f.name, f.type, f.default) for f in dataclasses.fields(Data{name})]",
        f"sorted(Dict{name}.__required_keys__), Tuple{name}._field_defaults",
        *(f"{each}.__annotations__" for each in names),
        *(f"typing.get_type_hints({each})" for each in names),
        *(f"inspect.signature({each})" for each in names if each.islower() or "link" in each),
    ]
    if sys.version_info >= (3, 14):
        formats = ("FORWARDREF", "STRING")
        script.probes += [
            f"[*__import__('annotationlib').get_annotations({each}, format="
            f"__import__('annotationlib').Format.{form})]"
            for each in names
            for form in formats
        ]


def type_parameters(script: Script) -> None:
    name, unknown = script.name("Type"), script.name("Unknown")
    script.parts.append(
        f"type {name} = dict[str, {name}] | list[{name}] | int\n"
        f"type Pair{name}[T] = tuple[T, Pair{name}[T]] | None\n"
        f"type Lost{name} = list[{unknown}]\n"
        f"type Many{name}[T: {unknown}, *Ts, **P] = tuple[T, *Ts]\n"
        f"S{name} = typing.TypeVar('S{name}')\n"
        f"Made{name} = typing.TypeAliasType('Made{name}', list[S{name}], type_params=(S{name},))\n"
        f"class Gen{name}[T: int, *Ts, **P]:\n"
        f"    def get(self, value: T) -> {name}: return value\n"
        f"    def put[U: (int, {unknown})](self, value: U) -> T: return value\n"
        f"class Sub{name}[T: Sub{name}](Gen{name}[int, str, [T]]): pass\n"
        f"@dataclasses.dataclass\nclass Linked{name}[T]:\n"
        f"    value: T\n    following: {script.later(f'Linked{name}[T] | None')} = None\n"
        f"    def first(self) -> {script.later(f'Linked{name}[T]')}: return self\n"
        f"def call{name}[U: {unknown}](value: U) -> U: return value\n"
        f"def both{name}[V: (int, str)](value: V) -> Pair{name}[V]: return value, None"
    )
    script.values += [name, f"Pair{name}", f"Lost{name}", f"Many{name}", f"Gen{name}"]
    script.values += [f"S{name}", f"Made{name}", f"Sub{name}", f"call{name}", f"both{name}"]
    script.values.append(f"Linked{name}")
    script.objects.append(f"Linked{name}(1, Linked{name}(2))")
    script.values += [f"Pair{name}.__type_params__[0]", f"call{name}.__type_params__[0]"]
    script.probes += [
        f"{name}.__value__, {name}.__module__, {name}.__value__.__args__[1].__args__[0] is {name}",
        f"Pair{name}.__value__, Pair{name}[int]",
        f"Pair{name}.__type_params__[0] is Pair{name}.__value__.__args__[0].__args__[0]",
        f"Lost{name}.__value__",
        f"Many{name}.__type_params__, Many{name}.__value__",
        f"Many{name}.__type_params__[0].__bound__",
        f"typing.get_type_hints(Linked{name}), typing.get_type_hints(Linked{name}.first)",
        f"Linked{name}.__annotations__, [f.type for f in dataclasses.fields(Linked{name})]",
        f"Made{name}.__type_params__ == (S{name},), Made{name}[int], Made{name}.__value__",
        f"Gen{name}().get(3), Gen{name}().put(4), Gen{name}.__type_params__",
        f"Gen{name}.put.__type_params__[0].__constraints__",
        f"Gen{name}.__type_params__[0].__bound__, Gen{name}.__orig_bases__",
        f"Sub{name}.__type_params__[0].__bound__ is Sub{name}, Sub{name}.__orig_bases__",
        f"call{name}(5), call{name}.__type_params__[0].__bound__",
        f"both{name}(6), both{name}.__type_params__[0].__constraints__",
        f"typing.get_type_hints(both{name})",
        f"typing.get_type_hints(Gen{name}.get)['return'] is {name}",
    ]
    if sys.version_info >= (3, 13):
        script.parts.append(
            f"class Default{name}[T = int, *Ts = *tuple[str, ...]]: pass\n"
            f"def default{name}[T = {unknown}](value: T) -> T: return value"
        )
        script.values += [f"Default{name}", f"default{name}"]
        script.probes += [
            f"[each.__default__ for each in Default{name}.__type_params__]",
            f"default{name}(7), default{name}.__type_params__[0].has_default()",
            f"default{name}.__type_params__[0].__default__",
        ]


def template_strings(script: Script) -> None:
    name = script.name("template")
    script.parts.append(
        f"class Value{name}:\n    def __repr__(self): return 'a value'\n"
        f"{name} = t'one {{counter + 1}} two {{Value{name}()!r:>10}}'\n"
        f"part{name} = functools.partial(lambda a, b: (a, b), functools.Placeholder, counter)\n"
        f"def show{name}(template):\n"
        "    try:\n"
        "        return template.strings, [repr(each) for each in template.interpolations]\n"
        "    except ValueError, TypeError:\n"
        "        return None"
    )
    script.values += [f"Value{name}", f"show{name}"]
    script.probes += [
        f"show{name}({name}), show{name}({name} + t'{{counter}}')",
        f"show{name}(pickle.loads(pickle.dumps({name})))",
        f"part{name}(3), part{name}.args[0] is functools.Placeholder",
    ]


KINDS: list[Callable[[Script], None]] = [
    *(plain_class, plain_class, enumeration, enumeration, dataclass),
    *(generic, functions, hooks, metaclass, main_module, forward_references),
]
if sys.version_info >= (3, 12):
    KINDS.append(type_parameters)
if sys.version_info >= (3, 14):
    KINDS.append(template_strings)


def make_script(seed: int) -> Script:
    """Make a random script; the same one for the same seed."""
    script = Script(seed)
    for _ in range(script.random.randint(1, 4)):
        script.random.choice(KINDS)(script)
    return script


@contextmanager
def as_main(text: str) -> Iterator[ModuleType]:
    """Run a script; within the block it is this process's ``__main__``."""
    module = ModuleType("__main__")
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        exec(compile(text, "script.py", "exec", dont_inherit=True), vars(module))
        yield module
    finally:
        sys.modules["__main__"] = before


class TaskProcess:
    """A process that runs blocks of tasks, as a worker does, without a cluster."""

    PROGRAM = """
import pickle, sys
from daskbatch.worker.entry import run_block
answers = sys.stdout.buffer
while True:
    try:
        payload = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    result = run_block(payload)
    pickle.dump((list(result.statuses), list(result.values)), answers)
    answers.flush()
"""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._blocks = 0

    def call(self, client: str, *calls: tuple[Any, ...]) -> list[Any]:
        """Call functions there, each a task of one block; return their results.

        Parameters
        ----------
        client : str
            The client that the tasks belong to.
        *calls : tuple
            Functions, each with its arguments.
        """
        self._blocks += 1
        functions: dict[bytes, int] = {}
        packed = []
        for function, *args in calls:
            index = functions.setdefault(pickling.dumps(function), len(functions))
            packed.append((index, pickling.pack((tuple(args), {}))[0]))
        spec = BlockSpec(
            block=self._blocks,
            topic=f"daskbatch-{client}",
            functions=list(functions),
            calls=packed,
            labels=["task"],
            links={},
            limits={},
            isolated=False,
            journaled=False,
            budget=math.inf,
            share_limit=1 << 30,
            inline_limit=1 << 30,
            output_limit=1 << 16,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(pickling.dumps(spec), self._process.stdin)
        self._process.stdin.flush()
        statuses, values = pickle.load(self._process.stdout)
        found = []
        for status, value in zip(statuses, values, strict=True):
            if status != Status.DONE:
                raise unpack_error(value)
            found.append(pickling.loads(value))
        return found

    def end(self) -> None:
        self._process.communicate(timeout=60)


def check(seed: int, elsewhere: TaskProcess) -> None:
    """Check that a script does in tasks what it does in one process."""
    script = make_script(seed)
    client = f"client{seed % 3}"
    with as_main(script.text()) as module:
        expected = module.probe()
        (found,) = elsewhere.call(client, (module.probe,))
        different = [pair for pair in zip(expected, found, strict=True) if pair[0] != pair[1]]
        assert not different, different
        assert module.probe() == expected  # nothing has changed here
        values, objects = list(module.values), list(module.objects)
        # Alone, since what is sent with other definitions may not need to be found.
        single = script.random.sample(values, min(3, len(values)))
        together, *alone = elsewhere.call(
            client,
            (module.same, (values, {"key": [objects]})),
            *((module.same, each) for each in single),
            *((module.same, each) for each in objects[:1]),
        )
        for name, sent, back in zip(script.values, values, together[0], strict=True):
            assert back is sent, name
        for sent, back in zip(single, alone, strict=False):
            assert back is sent, sent
        for wanted, back in (
            (objects, together[1]["key"][0]),
            (objects[:1], alone[len(single) :]),
        ):
            assert [*map(type, back)] == [*map(type, wanted)]
            assert back == wanted
        back = script.random.choice(WAYS)(values)
        assert all(one is other for one, other in zip(values, back, strict=True))
        # What goes on from a task to another one comes back, too.
        (onward,) = elsewhere.call(client, (module.same, together[0]))
        assert all(one is other for one, other in zip(values, onward, strict=True))


def _with_buffers(values: list[Any]) -> Any:
    data, buffers = pickling.dumps_with_buffers(values, 1000)
    return pickling.loads(data, buffers=buffers)


def _as_chunk(values: list[Any]) -> Any:
    packed, failed = pack_values(values)
    assert not failed
    return [packed.load(position) for position in range(len(values))]


def _in_exception(values: list[Any]) -> Any:
    return unpack_error(pack_error(ValueError(*values), "'t'")).args


#: Other ways in which values travel: in a dictionary, as results of a chunk, in an exception.
WAYS: list[Callable[[list[Any]], Any]] = [_with_buffers, _as_chunk, _in_exception]


def call(elsewhere: TaskProcess, function: Any, *args: Any) -> Any:
    """Return what a function returns in another process."""
    (found,) = elsewhere.call("a client", (function, *args))
    return found
