"""The data of a call: where its pieces are, and that each rank may change its own copy."""

from __future__ import annotations

import os

from daskbatch.serialization import pickling
from daskbatch.worker.mpi.rank_function import PackedCall, RankFunction, RankSettings, RankValue
from daskbatch.worker.mpi.request import as_block, make_request, map_file

CALL = PackedCall(b"function", b"setup", b"data", (b"value", "text", b""), (b"x" * 100, b"y" * 7))


def request_of(call: PackedCall) -> tuple:  # type: ignore[type-arg]
    return make_request(call, "daskbatch-0a", "t", ["/a"], "/tmp", None)


def test_all_pieces_are_found_again_in_a_file() -> None:
    request, layout = request_of(CALL)
    file = layout.write()
    spec, buffers = as_block(request, map_file(file, request.size))
    os.close(file)
    assert (spec.functions, spec.setup, spec.calls) == ([b"function"], b"setup", [(0, b"data")])
    link = spec.links[0]
    assert [each if isinstance(each, str) else bytes(each) for each in link.values] == [
        b"value",
        "text",
        b"",
    ]
    assert [bytes(each) for each in buffers] == [b"x" * 100, b"y" * 7]
    assert spec.limits[0].cwd == "/tmp"


def test_pieces_in_a_message_are_the_same() -> None:
    request, layout = request_of(CALL)
    data = layout.joined()
    assert len(data) == request.size
    _, buffers = as_block(request, memoryview(bytearray(data)))
    assert [bytes(each) for each in buffers] == [b"x" * 100, b"y" * 7]


def test_what_one_rank_changes_no_other_sees() -> None:
    request, layout = request_of(CALL)
    file = layout.write()
    first, second = (as_block(request, map_file(file, request.size))[1][0] for _ in range(2))
    first[0] = 0
    assert (first[0], second[0]) == (0, ord("x"))
    assert os.pread(file, 1, request.buffers[0][0]) == b"x"
    os.close(file)


def test_a_call_without_arguments_has_no_link() -> None:
    request, layout = request_of(PackedCall(b"f", None, b"d"))
    spec, buffers = as_block(request, memoryview(bytearray(layout.joined())))
    assert (spec.links, spec.setup, buffers) == ({}, None, [])


class NotHere:
    """Counts how often it is unpickled."""

    loaded = 0

    def __reduce__(self) -> object:
        return NotHere._load, ()

    @staticmethod
    def _load() -> NotHere:
        NotHere.loaded += 1
        return NotHere()

    def __call__(self) -> None:
        pass


def test_the_callable_is_not_loaded_with_its_record() -> None:
    data = pickling.dumps(RankFunction(NotHere(), RankSettings(2, cores=3)))
    record = pickling.loads(data)
    again = pickling.loads(pickling.dumps(record))
    assert NotHere.loaded == 0
    assert again.settings == RankSettings(2, cores=3)
    assert isinstance(pickling.loads(again.data), NotHere)


def test_values_are_loaded_where_the_list_of_them_is() -> None:
    values = [RankValue(pickling.dumps(each)) for each in (1, "é", [None])]
    assert pickling.loads(pickling.dumps(values)) == [1, "é", [None]]
