"""Paths are compared by value; messages say what is wrong and what to give instead."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest

from daskbatch.describe.access import (
    FILES,
    WHOLE,
    Access,
    Channel,
    CommunicationDomain,
    CommunicationObject,
    Mode,
    make_access,
)
from daskbatch.errors import SpecError
from daskbatch.plan.program import shared_channels

BASE = "/base/dir"


def read(obj: object, *channels: Any) -> tuple[Channel, ...]:
    return make_access(Mode.READ, obj, channels, BASE).channels


def overlap(one: tuple[Channel, ...], other: tuple[Channel, ...]) -> bool:
    return any(shared_channels(one, other))


def refusal(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SpecError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# -- paths --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(("d", "f"), id="directory and name"),
        pytest.param((Path("d"), "f"), id="Path and str"),
        pytest.param(("d", Path("f")), id="str and Path"),
        pytest.param((Path("d"), Path("f")), id="Path and Path"),
        pytest.param(("d/f",), id="one str"),
        pytest.param((Path("d/f"),), id="one Path"),
        pytest.param(("./d//f",), id="dots and slashes"),
        pytest.param(("d/", "./f"), id="trailing slash"),
        pytest.param(("d/e/../f",), id="a step up within"),
        pytest.param(("d/e", "../f"), id="a step up in the name"),
        pytest.param(("../dir/d", "f"), id="a step up from the base"),
        pytest.param((BASE + "/d", "f"), id="absolute directory"),
        pytest.param((f"{BASE}/d/f",), id="absolute path"),
        pytest.param(("anywhere", f"{BASE}/d/f"), id="absolute name"),
    ],
)
def test_the_same_file_is_the_same_channel_however_it_is_written(given: tuple[Any, ...]) -> None:
    assert read(*given) == (Channel(FILES, "/base/dir/d/f"),)


@pytest.mark.parametrize(
    ("one", "other"), [("d/f", "d/F"), ("d/f", "d/f "), ("d/f", "e/f"), ("df", "d/f"), ("d", "d2")]
)
def test_different_files_are_different_channels(one: str, other: str) -> None:
    assert read(one) != read(other)
    assert not overlap(read(one), read(other))


@pytest.mark.parametrize("name", ["grüße.txt", "два слова", "a b  c", "日本/語", "-", "*", "a\nb"])
def test_any_name_is_taken_literally(name: str) -> None:
    assert read("d", name) == read(Path("d") / name) == (Channel(FILES, f"{BASE}/d/{name}"),)
    assert read("d", name) != read("d", "a")


def test_a_relative_path_is_relative_to_the_given_base() -> None:
    (here,) = make_access(Mode.READ, "f", (), "/one").channels
    (there,) = make_access(Mode.READ, "f", (), "/two").channels
    (absolute,) = make_access(Mode.READ, "/one/f", (), "/two").channels
    assert here == absolute != there


def test_the_base_itself_can_be_meant() -> None:
    assert read(".") == read(BASE) == read("d/..") == (Channel(FILES, BASE),)


def test_two_slashes_at_the_start_are_one() -> None:
    assert read("//data/f") == read("/data/f")
    assert overlap(read("/"), read("//data/f"))


def test_a_path_above_the_root_is_the_root() -> None:
    assert read("/../../etc") == read("/etc")


def test_several_names_are_several_channels_in_their_order() -> None:
    assert read("d", "b", "a") == (*read("d/b"), *read("d/a"))


def test_a_directory_covers_what_is_below_it_and_nothing_else() -> None:
    assert overlap(read("d"), read("d/e/f"))
    assert overlap(read("d/e/f"), read("d"))
    assert overlap(read("/"), read("d"))
    assert not overlap(read("d"), read("d.txt"))
    assert not overlap(read("d/e"), read("d/f"))


@pytest.mark.parametrize("wrong", [3, None, b"bytes", ["d"], {"d": 1}, 1.5])
def test_what_is_no_path_and_no_object_is_refused(wrong: object) -> None:
    for mode in Mode:
        text = refusal(make_access, mode, wrong, (), BASE)
        assert text.startswith(f"cannot {mode.value} {wrong!r}: give a path")
        assert "CommunicationObject" in text


@pytest.mark.parametrize("wrong", [3, None, b"bytes", ["a"], ("a", "b")])
def test_what_is_no_file_name_is_refused(wrong: object) -> None:
    assert (
        refusal(read, "d", "fine", wrong) == f"{wrong!r} is not a file name: give a str or a Path"
    )


# -- communication objects ----------------------------------------------------------------

SOCKET = CommunicationObject(CommunicationDomain(waw=False), "10.0.0.7")


def test_objects_of_equal_domain_and_name_are_the_same() -> None:
    again = CommunicationObject(CommunicationDomain(waw=False), "10.0.0.7")
    assert read(again, 80) == read(SOCKET, 80)
    assert hash(again) == hash(SOCKET)


@pytest.mark.parametrize(
    "other",
    [
        CommunicationObject(CommunicationDomain(), "10.0.0.7"),
        CommunicationObject(CommunicationDomain(waw=False), "10.0.0.8"),
    ],
)
def test_objects_of_another_domain_or_name_are_others(other: CommunicationObject) -> None:
    assert not overlap(read(other, 80), read(SOCKET, 80))


def test_channels_are_compared_by_value() -> None:
    assert read(SOCKET, ("a", 1), 80) == (Channel(SOCKET, ("a", 1)), Channel(SOCKET, 80))
    assert read(SOCKET, 1) == read(SOCKET, 1.0)
    assert read(SOCKET, 1) != read(SOCKET, "1")


def test_without_channels_the_whole_object_is_meant() -> None:
    assert read(SOCKET) == (Channel(SOCKET, WHOLE),)
    assert overlap(read(SOCKET), read(SOCKET, 80))
    assert overlap(read(SOCKET, 80), read(SOCKET))


def test_a_channel_of_an_object_is_no_path() -> None:
    assert not overlap(read(SOCKET, "/a"), read(SOCKET, "/a/b"))
    assert not overlap(read(SOCKET, "/a"), read("/a"))


def test_an_object_of_ones_own_called_files_is_not_the_file_system() -> None:
    own = CommunicationObject(CommunicationDomain(), "files")
    assert not overlap(read(own, "/a"), read("/a"))
    assert not overlap(read(own, "/a"), read("/"))


@pytest.mark.parametrize("name", ["rar", "raw", "war", "waw"])
@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_a_domain_takes_only_true_and_false(name: str, wrong: Any) -> None:
    text = refusal(CommunicationDomain, **{name: wrong})
    assert text == f"{name}= must be True or False, not {wrong!r}"


def test_by_default_all_pairs_but_two_reads_keep_their_order() -> None:
    assert CommunicationDomain() == CommunicationDomain(rar=False, raw=True, war=True, waw=True)


@pytest.mark.parametrize("wrong", ["domain", None, True])
def test_an_object_needs_a_domain(wrong: Any) -> None:
    text = refusal(CommunicationObject, wrong, "name")
    assert text == f"domain= must be a CommunicationDomain, not {type(wrong).__name__}"


def test_the_name_of_an_object_must_be_hashable() -> None:
    text = refusal(CommunicationObject, CommunicationDomain(), ["a"])
    assert text == "the name of a CommunicationObject must be hashable, and ['a'] is not"


def test_a_channel_must_be_hashable() -> None:
    text = refusal(read, SOCKET, 80, {"port": 81})
    assert text == "a channel of 10.0.0.7 must be hashable, and {'port': 81} is not"


# -- objects that offer channels ----------------------------------------------------------


class Ledger:
    """Offers its accounts as channels, in lower case."""

    owner = CommunicationObject(CommunicationDomain(rar=True), "ledger")

    def __batch_channels__(
        self, channels: tuple[Any, ...]
    ) -> tuple[CommunicationObject, tuple[Hashable, ...]]:
        if "closed" in channels:
            raise SpecError("this account is closed")
        return self.owner, tuple(each.lower() for each in channels if each != "all")


def test_an_object_can_offer_channels_of_its_own() -> None:
    assert read(Ledger(), "Cash", "BANK") == read(Ledger.owner, "cash", "bank")


@pytest.mark.parametrize("channels", [(), ("all",)])
def test_an_object_that_offers_no_channel_is_meant_as_a_whole(channels: tuple[str, ...]) -> None:
    assert read(Ledger(), *channels) == read(Ledger.owner)


def test_an_object_can_refuse_a_channel() -> None:
    assert refusal(read, Ledger(), "closed") == "this account is closed"


def test_an_object_that_offers_an_unhashable_channel_is_told() -> None:
    class Wrong:
        def __batch_channels__(self, channels: tuple[Any, ...]) -> Any:
            return Ledger.owner, ([],)

    assert refusal(read, Wrong(), 1) == "a channel of ledger must be hashable, and [] is not"


# -- the record ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obj", "channels", "text"),
    [
        ("d", ("f", "g"), "/base/dir/d/f, /base/dir/d/g"),
        (SOCKET, (), "10.0.0.7"),
        (SOCKET, (80, "x"), "10.0.0.7[80], 10.0.0.7['x']"),
    ],
)
def test_an_access_reads_well(obj: Any, channels: tuple[Any, ...], text: str) -> None:
    assert str(make_access(Mode.READ, obj, channels, BASE)) == f"read of {text}"
    assert str(make_access(Mode.WRITE, obj, channels, BASE)) == f"write of {text}"


def test_what_cannot_be_shown_is_told_of_by_its_type() -> None:
    long = 10**5_000  # Python does not write it
    assert refusal(read, long).startswith("cannot read a int: give a path")
    assert refusal(read, "d", long) == "a int is not a file name: give a str or a Path"
    assert "10.0.0.7 must be hashable, and a list is not" in refusal(read, SOCKET, [long])
    assert str(make_access(Mode.READ, SOCKET, (long,), BASE)) == "read of 10.0.0.7[a int]"


def test_an_access_has_a_mode_and_cannot_be_changed() -> None:
    access = make_access(Mode.WRITE, "d", (), BASE)
    assert access == Access(Mode.WRITE, read("d"))
    assert access != make_access(Mode.READ, "d", (), BASE)
    with pytest.raises(AttributeError):
        access.mode = Mode.READ  # type: ignore[misc]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize(("obj", "above"), [("d/f", "d"), (SOCKET, SOCKET)], ids=["file", "object"])
def test_a_copied_access_is_the_same_access(obj: Any, above: Any, copied: Any) -> None:
    channels = (80,) if obj is SOCKET else ()
    access = make_access(Mode.READ, obj, channels, BASE)
    again = copied(access)
    assert again == access
    assert str(again) == str(access)
    assert overlap(again.channels, read(above))
