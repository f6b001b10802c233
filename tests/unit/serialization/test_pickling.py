"""Arguments become bytes: tasks among them are found, and large buffers are shared."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import pytest

from daskbatch.errors import SerializationError
from daskbatch.serialization import pickling

LARGE = pickling.MIN_SHARED_BUFFER_BYTES


class TaskPlaceholder:
    """Stands for a task: found by `pack`, and replaced by a value by `unpack`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        found = pickling.reference(self.name)
        if found is None:
            raise TypeError(f"{self.name} is no argument here")
        return found


@dataclass
class Record:
    value: Any
    more: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Slotted:
    value: Any


class Named(NamedTuple):
    value: Any


class Own:
    def __init__(self, value: Any) -> None:
        self.hidden = {"deep": [value]}


class Stateful:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __getstate__(self) -> Any:
        return {"value": self.value}


def call(function: Any) -> Any:
    return function()


def fill(obj: object, *values: object) -> Any:
    """Pack an object, and unpack it with values for the tasks in it."""
    data, found, buffers = pickling.pack(obj)
    assert len(found) == len(values)
    contents = [buffer.content for buffer in buffers]
    return pickling.unpack(data, [pickling.dumps(value) for value in values], contents)


# -- tasks among arguments ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        pytest.param(lambda s: s, lambda o: o, id="alone"),
        pytest.param(lambda s: ((), {"key": s}), lambda o: o[1]["key"], id="keyword"),
        pytest.param(lambda s: [[1, [s]]], lambda o: o[0][1][0], id="list"),
        pytest.param(lambda s: ((), ((s,),)), lambda o: o[1][0][0], id="tuple"),
        pytest.param(lambda s: {"a": {"b": s}}, lambda o: o["a"]["b"], id="dict"),
        pytest.param(lambda s: {s: 1}, lambda o: next(iter(o)), id="key of a dict"),
        pytest.param(lambda s: {s}, lambda o: next(iter(o)), id="set"),
        pytest.param(lambda s: frozenset([s]), lambda o: next(iter(o)), id="frozenset"),
        pytest.param(lambda s: deque([s]), lambda o: o[0], id="deque"),
        pytest.param(lambda s: OrderedDict(a=s), lambda o: o["a"], id="OrderedDict"),
        pytest.param(lambda s: Record(s), lambda o: o.value, id="dataclass"),
        pytest.param(lambda s: Record(0, [s]), lambda o: o.more[0], id="list in a dataclass"),
        pytest.param(lambda s: Slotted(s), lambda o: o.value, id="dataclass with slots"),
        pytest.param(lambda s: Named(s), lambda o: o.value, id="named tuple"),
        pytest.param(lambda s: Own(s), lambda o: o.hidden["deep"][0], id="attribute"),
        pytest.param(lambda s: Stateful(s), lambda o: o.value, id="state"),
        pytest.param(lambda s: partial(max, s), lambda o: o.args[0], id="partial"),
        pytest.param(lambda s: np.array([s]), lambda o: o[0], id="array of objects"),
        pytest.param(lambda s: lambda: s, call, id="closure"),
    ],
)
def test_a_task_is_found_and_replaced_wherever_it_stands(wrap: Any, unwrap: Any) -> None:
    assert unwrap(fill(wrap(TaskPlaceholder("a")), "the value")) == "the value"


def test_tasks_are_found_in_the_order_of_their_slots() -> None:
    obj = [TaskPlaceholder("a"), {"x": TaskPlaceholder("b")}, Record(TaskPlaceholder("c"))]
    assert pickling.pack(obj)[1] == ("a", "b", "c")
    first, second, third = fill(obj, 1, 2, 3)
    assert (first, second["x"], third.value) == (1, 2, 3)


def test_a_text_stands_for_itself() -> None:
    data, _, _ = pickling.pack([TaskPlaceholder("a"), TaskPlaceholder("b")])
    assert pickling.unpack(data, ["plain text", pickling.dumps(2)]) == ["plain text", 2]


def test_each_slot_is_filled_with_a_copy_of_its_own() -> None:
    data, _, _ = pickling.pack([TaskPlaceholder("a"), TaskPlaceholder("b")])
    value = pickling.dumps([1])
    first, second = pickling.unpack(data, [value, value])
    third, _ = pickling.unpack(data, [value, value])
    first.append(2)
    assert second == [1]
    assert third == [1]


def test_without_tasks_nothing_is_found() -> None:
    data, found, buffers = pickling.pack(([1, "two"], {"three": 3.0}))
    assert (found, buffers) == ((), ())
    assert pickling.unpack(data) == ([1, "two"], {"three": 3.0})


def test_outside_of_pack_there_is_no_reference() -> None:
    assert pickling.reference("a") is None
    with pytest.raises(TypeError):
        pickling.dumps(TaskPlaceholder("a"))


def test_after_a_failed_pack_there_is_no_reference() -> None:
    with pytest.raises(SerializationError):
        pickling.pack([TaskPlaceholder("a"), threading.Lock()])
    assert pickling.reference("a") is None


# -- re-entrancy and threads --------------------------------------------------------------


class PacksItself:
    """Packs something else while it is packed, as a task does that is made while pickling."""

    def __reduce__(self) -> Any:
        data, found, _ = pickling.pack([TaskPlaceholder("inner")])
        return tuple, ((data, found),)


def test_a_pack_within_a_pack_finds_its_own_and_leaves_the_other_alone() -> None:
    first, (inner, found), second = fill(
        [TaskPlaceholder("a"), PacksItself(), TaskPlaceholder("b")], 1, 2
    )
    assert (first, found, second) == (1, ("inner",), 2)
    assert pickling.unpack(inner, [pickling.dumps("x")]) == ["x"]


def test_a_failed_pack_within_a_pack_does_not_disturb_it() -> None:
    class Fails:
        def __reduce__(self) -> Any:
            with pytest.raises(SerializationError):
                pickling.pack(threading.Lock())
            return str, ("done",)

    assert fill([TaskPlaceholder("a"), Fails(), TaskPlaceholder("b")], 1, 2) == [1, "done", 2]


@dataclass
class Unpacks:
    """Unpacks something while it is unpickled."""

    value: Any

    def __setstate__(self, state: dict[str, Any]) -> None:
        data, found, _ = pickling.pack(TaskPlaceholder("inner"))
        assert found == ("inner",)
        self.value = state["value"], pickling.unpack(data, ["inner"])


def test_an_unpack_within_an_unpack_does_not_disturb_it() -> None:
    first, middle, last = fill(
        [TaskPlaceholder("a"), Unpacks(TaskPlaceholder("b")), TaskPlaceholder("c")], 1, 2, 3
    )
    assert (first, middle.value, last) == (1, (2, "inner"), 3)


class MeetsOthers:
    """Waits, while it is packed, until another thread is at the same point."""

    barrier = threading.Barrier(2, timeout=30)

    def __reduce__(self) -> Any:
        self.barrier.wait()
        return str, ("met",)


def test_threads_that_pack_at_once_do_not_see_each_others_tasks() -> None:
    results: dict[str, Any] = {}

    def pack(name: str) -> None:
        array = np.full(LARGE, ord(name), np.uint8)
        results[name] = pickling.pack(
            [TaskPlaceholder(name + "1"), MeetsOthers(), TaskPlaceholder(name + "2"), array]
        )

    threads = [threading.Thread(target=pack, args=(name,)) for name in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for name in "xy":
        _, found, (buffer,) = results[name]
        assert found == (name + "1", name + "2")
        assert bytes(buffer.content[:1]) == name.encode()


# -- large buffers ------------------------------------------------------------------------


def test_a_large_buffer_travels_apart_and_a_small_one_does_not() -> None:
    large, small = np.ones(LARGE, np.uint8), np.ones(LARGE - 1, np.uint8)
    data, _, (buffer,) = pickling.pack([large, small])
    assert len(data) < LARGE + 1000
    assert bytes(buffer.content) == large.tobytes()
    again = pickling.unpack(data, (), [buffer.content])
    assert (again[0] == large).all()
    assert (again[1] == small).all()


def test_buffers_of_equal_content_are_one() -> None:
    first = pickling.pack(np.arange(LARGE))[2]
    second = pickling.pack([1, np.arange(LARGE)])[2]
    other = pickling.pack(np.arange(1, LARGE + 1))[2]
    assert first[0].content is second[0].content
    assert first[0].digest == second[0].digest != other[0].digest


def test_a_buffer_has_the_content_of_the_moment() -> None:
    array = np.zeros(LARGE, np.uint8)
    data, _, (before,) = pickling.pack(array)
    array[:] = 1
    _, _, (after,) = pickling.pack(array)
    assert before.digest != after.digest
    assert not pickling.unpack(data, (), [before.content]).any()


def test_the_buffers_are_in_the_order_in_which_unpack_takes_them() -> None:
    arrays = [np.full(LARGE, number, np.uint8) for number in (3, 1, 3, 2)]
    again = fill([*arrays, TaskPlaceholder("a")], "value")
    assert [each[0] for each in again[:4]] == [3, 1, 3, 2]
    assert again[4] == "value"


@pytest.mark.parametrize("size", [10, LARGE])
def test_every_copy_of_an_array_can_be_written_to(size: int) -> None:
    data, _, buffers = pickling.pack([np.zeros(size, np.uint8), np.zeros(size, np.uint8)])
    contents = [buffer.content for buffer in buffers]
    first, second = pickling.unpack(data, (), contents)
    first[0] = 1
    assert second[0] == 0
    assert not pickling.unpack(data, (), contents)[0].any()


def test_arrays_of_any_layout_come_back_as_they_were() -> None:
    square = np.arange(40_000.0).reshape(200, 200)
    arrays = [np.asfortranarray(square), square[::2, ::3], square.T, square.astype(">f4")]
    for before, after in zip(arrays, fill(arrays), strict=True):
        assert before.dtype == after.dtype
        assert (before == after).all()


def test_a_buffer_is_kept_no_longer_than_it_is_used() -> None:
    kept = weakref.ref(pickling.pack(np.full(LARGE, 7, np.uint8))[2][0])
    gc.collect()
    assert kept() is None


# -- by reference, by value ---------------------------------------------------------------


def test_a_function_of_a_module_travels_by_reference() -> None:
    assert pickling.loads(pickling.dumps(call)) is call


def test_lambdas_and_local_classes_travel_by_value() -> None:
    @dataclass
    class Local:
        value: int

    function, obj = pickling.loads(pickling.dumps((lambda x: x + 1, Local(3))))
    assert function(1) == 2
    assert obj.value == 3


SCRIPT = """
import sys
from dataclasses import dataclass
from daskbatch.serialization import pickling

@dataclass
class Point:
    x: int

SCALE = 10

def scaled(point):
    return SCALE * point.x

class TaskPlaceholder:
    def __reduce__(self):
        return pickling.reference("a")

data, found, _ = pickling.pack((scaled, Point(4), [TaskPlaceholder()]))
assert found == ("a",), found
sys.stdout.buffer.write(pickling.dumps((pickling.dumps(scaled), Point(3), data)))
"""


def test_what_is_defined_in_main_can_be_used_elsewhere(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    sent = subprocess.run([sys.executable, script], capture_output=True, timeout=100)
    assert sent.stderr.decode() == ""
    function, point, data = pickling.loads(sent.stdout)
    assert pickling.loads(function)(point) == 30
    scaled, four, filled = pickling.unpack(data, ["value"])
    assert (scaled(four), filled) == (40, ["value"])


def test_modules_registered_with_cloudpickle_travel_by_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def answer():\n    return 42\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        import only_here  # type: ignore[import-not-found]

        by_reference = pickling.dumps(only_here.answer)
        cloudpickle.register_pickle_by_value(only_here)
        try:
            by_value = pickling.dumps(only_here.answer)
            packed, found, _ = pickling.pack([only_here.answer, TaskPlaceholder("a")])
        finally:
            cloudpickle.unregister_pickle_by_value(only_here)
            del sys.modules["only_here"]
    assert found == ("a",)
    assert pickle.loads(by_value)() == 42
    assert pickling.unpack(packed, ["text"])[0]() == 42
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(by_reference)


# -- the way back to cloudpickle ----------------------------------------------------------


def test_what_plain_pickle_has_found_before_it_gave_up_does_not_count_twice() -> None:
    array = np.ones(LARGE, np.uint8)
    obj = [TaskPlaceholder("a"), array, lambda: 5, TaskPlaceholder("b")]
    _, found, buffers = pickling.pack(obj)
    assert found == ("a", "b")
    assert len(buffers) == 1
    first, ones, function, second = fill(obj, 1, 2)
    assert (first, function(), second) == (1, 5, 2)
    assert ones.all()


# -- what cannot travel -------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [threading.Lock(), (each for each in ()), sys._getframe()])
def test_an_object_that_cannot_be_pickled_says_why(wrong: object) -> None:
    with pytest.raises(SerializationError, match=type(wrong).__name__) as caught:
        pickling.pack([wrong])
    assert isinstance(caught.value.__cause__, Exception)


def test_an_error_in_the_users_own_reduce_is_told() -> None:
    class Refuses:
        def __reduce__(self) -> Any:
            raise ZeroDivisionError("not today")

    with pytest.raises(SerializationError, match="ZeroDivisionError: not today"):
        pickling.pack(Refuses())


def test_too_deep_a_nesting_is_told() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError):
        pickling.pack(deep)
    while deep:  # lest taking it apart should go too deep
        (deep,) = deep


class Standing(TaskPlaceholder):
    """A `TaskPlaceholder` that `pack_flat` knows."""


class Undecided(TaskPlaceholder):
    """Its `__reduce__` decides, and not `pack_flat`."""


class Unhashable(type):
    def __hash__(cls) -> int:
        raise ValueError("no hash")


class OfUnhashable(metaclass=Unhashable):
    pass


class Text(str):
    """Not plain: it may hold a task."""


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickling, "_targets", {})
    pickling.register_target(Standing, lambda each: each.name)
    pickling.register_target(Undecided, lambda each: None)


ONE, TWO = Standing("one"), Standing("two")


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    "args",
    [(ONE,), (1, ONE, "x", TWO, None), (ONE, ONE), (TWO, ONE, TWO), (ONE, Standing("one"), b"b")],
    ids=["one", "among plain ones", "twice", "in another order", "equal ones"],
)
def test_flat_arguments_arrive_as_packed_ones_do(args: tuple[Any, ...]) -> None:
    packed, flat = pickling.pack((args, {})), pickling.pack_flat(args)
    assert flat is not None
    assert flat[1:] == packed[1:]
    values = [pickling.dumps(["a value", each]) for each in flat[1]]
    ours, theirs = pickling.unpack(flat[0], values), pickling.unpack(packed[0], values)
    assert ours == theirs
    # The same object twice is the same object there; each other one is a copy of its own.
    same = [[one is other for one in found[0] for other in found[0]] for found in (ours, theirs)]
    assert same[0] == same[1]


@pytest.mark.usefixtures("known")
def test_flat_arguments_are_filled_with_texts_and_given_values() -> None:
    flat = pickling.pack_flat((ONE, TWO))
    assert flat is not None
    given = object()
    (text, value), _ = pickling.unpack(flat[0], ["printed", pickling.GivenValue(given)])
    assert text == "printed"
    assert value is given


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    "other",
    [[ONE], {"a": 1}, Text("a"), TaskPlaceholder("three"), Undecided("four"), OfUnhashable(), len],
    ids=lambda each: type(each).__name__,
)
def test_other_arguments_are_not_packed_flat(other: object) -> None:
    assert pickling.pack_flat((1, ONE, other)) is None
