"""Writes a trace in Perfetto's own format: a message `Trace` of Protocol Buffers.

The numbers of fields are those of Perfetto's ``perfetto_trace.proto``; the encoding is described in
Google's "Protocol Buffers: Encoding". Only what is needed is here, so that nothing need be
installed. Pure; any thread may call it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from daskbatch.report.analysis.run_graph import group_name
from daskbatch.report.trace_model import Arrow, TraceModel, details

#: The types of a `TrackEvent`.
_BEGIN, _END, _COUNTER = 1, 2, 4

#: All packets are of one sequence, whose state begins with the first one.
_SEQUENCE, _STATE_CLEARED = 1, 1

#: The track of the counter; those of workers and of slots follow.
_COUNTER_TRACK = 1


def make_perfetto_trace(model: TraceModel) -> bytes:
    """Return a trace as the bytes of a file that Perfetto reads.

    Parameters
    ----------
    model : TraceModel
        What the trace holds.
    """
    tracks = {
        (process, thread): _COUNTER_TRACK + 1 + number
        for number, (process, thread) in enumerate(
            place for row in model.rows for place in ((row.process, 0), (row.process, row.thread))
        )
    }
    packets = [*_describe(model, tracks), *(packet for _, _, packet in _events(model, tracks))]
    return b"".join(_message(1, packet) for packet in packets)


def _describe(model: TraceModel, tracks: dict[tuple[int, int], int]) -> Iterator[bytes]:
    counter = _number(1, _COUNTER_TRACK) + _text(2, "taken slots") + _message(8, b"")
    yield _message(60, counter) + _number(13, _STATE_CLEARED) + _number(10, _SEQUENCE)
    named: set[int] = set()
    for process, thread, worker, name in model.rows:
        if process not in named:
            named.add(process)
            described = _message(3, _number(1, process) + _text(6, worker))
            yield _packet(60, _number(1, tracks[process, 0]) + described)
        # The system's numbers of threads differ between processes.
        identity = _number(1, process) + _number(2, process * 100_000 + thread) + _text(5, name)
        parent = _number(5, tracks[process, 0])
        yield _packet(60, _number(1, tracks[process, thread]) + parent + _message(4, identity))


def _events(model: TraceModel, tracks: dict[tuple[int, int], int]) -> list[tuple[int, int, bytes]]:
    """Return the events with their times; at one time, ends come before starts."""
    leaving: dict[str, list[int]] = {}
    arriving: dict[str, list[tuple[int, Arrow]]] = {}
    for number, arrow in enumerate(model.arrows, 1):
        leaving.setdefault(arrow.before, []).append(number)
        arriving.setdefault(arrow.after, []).append((number, arrow))
    events: list[tuple[int, int, bytes]] = []
    order = 0
    for uid, (task, row, start, end) in model.slices.items():
        track = _number(11, tracks[row.process, row.thread])
        body = [_number(9, _BEGIN), track, _text(23, task.name)]
        body.append(_text(22, group_name(task.name) or "task"))
        body += [_fixed(47, number) for number in leaving.get(uid, ())]
        body += [_fixed(48, number) for number, _ in arriving.get(uid, ())]
        body += [_annotation(name, value) for name, value in details(task).items()]
        reasons = "; ".join(arrow.name for _, arrow in arriving.get(uid, ()))
        if reasons:
            body.append(_annotation("waited because of", reasons))
        # The rows' slices are in order, so the events of a row stay in order at equal times.
        events.append((start, order, _timed(start, b"".join(body))))
        events.append((end, order + 1, _timed(end, _number(9, _END) + track)))
        order += 2
    for time, taken in model.taken:
        track = _number(11, _COUNTER_TRACK)
        body_of = _number(9, _COUNTER) + track + _number(30, taken)
        events.append((time, order, _timed(time, body_of)))
    return sorted(events, key=lambda event: event[:2])


def _timed(time: int, event: bytes) -> bytes:
    return _number(8, time) + _packet(11, event)


def _packet(field: int, content: bytes) -> bytes:
    return _message(field, content) + _number(10, _SEQUENCE)


def _annotation(name: str, value: str | int | float) -> bytes:
    if isinstance(value, str):
        said = _text(6, value)
    elif isinstance(value, int):
        said = _number(4, value)
    else:
        said = _varint(5 << 3 | 1) + struct.pack("<d", value)
    return _message(4, _text(10, name) + said)


# -- the encoding ----------------------------------------------------------------------------


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _fixed(field: int, number: int) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<Q", number)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode("utf-8", "replace"))
