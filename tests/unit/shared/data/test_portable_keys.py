"""Keys in files: a later program finds them, whichever version of daskbatch has saved them."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
from support.saved_keys import ARRAY, CONTENTS, SAVED, Colour, Point

from daskbatch.errors import SerializationError
from daskbatch.shared.data.codec import unpack
from daskbatch.shared.data.portable_keys import dumps_for_later
from daskbatch.shared.data.snapshot import read_snapshot

KEYS = [key for key in CONTENTS if not isinstance(key, (str, int))]


@pytest.fixture
def classes_in_main(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (Point, Colour):
        monkeypatch.setattr(sys.modules["__main__"], each.__name__, each, raising=False)


def saved() -> dict[Any, Any]:
    """Return the contents of the file that an earlier version has saved."""
    return {unpack(key): unpack((value, *buffers)) for key, value, buffers in read_snapshot(SAVED)}


def test_a_file_of_an_earlier_version_names_byname() -> None:
    assert SAVED.read_bytes().count(b"daskbatch.shared.byname") == 6


@pytest.mark.usefixtures("classes_in_main")
def test_a_file_of_an_earlier_version_is_read_with_the_classes_of_this_program() -> None:
    found = saved()
    assert np.array_equal(found.pop("array"), ARRAY)
    assert found == CONTENTS


def test_a_file_of_an_earlier_version_is_read_without_its_classes() -> None:
    if sys.version_info >= (3, 12):
        # It contains code of Python 3.11, which would crash this one.
        with pytest.raises(SerializationError, match="an unknown version of Python"):
            saved()
        return
    found = saved()
    assert np.array_equal(found.pop("array"), ARRAY)
    assert sorted(map(repr, found)) == sorted(map(repr, CONTENTS))
    assert {key: found[key] for key in ("text", 2, (3, "c"))} == {
        key: CONTENTS[key] for key in ("text", 2, (3, "c"))
    }
    assert Point(1.0, "p") not in found


@pytest.mark.usefixtures("classes_in_main")
@pytest.mark.parametrize("key", KEYS[1:], ids=lambda key: type(key).__name__)
def test_a_key_names_this_module_from_now_on(key: Any) -> None:
    data = dumps_for_later(key)
    assert b"daskbatch.shared.data.portable_keys" in data
    assert b"byname" not in data
    assert pickle.loads(data) == key


def test_plain_keys_name_no_module() -> None:
    for key in (None, True, 1, 1.5, "text", b"bytes", (3, "c")):
        data = dumps_for_later(key)
        assert b"daskbatch" not in data
        assert pickle.loads(data) == key
