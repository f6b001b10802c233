"""The file of events has whole lines only, whatever ends the process that writes it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes import killed_if_failed
from support.waiting import wait_until

from daskbatch.records import event_log
from daskbatch.records.event_lines import EndedLines, Lines, PlainLines, StartedLines
from daskbatch.records.event_log import EventLog, append, complete
from daskbatch.records.event_schema import EVENTS_FILE

PAGE = 4096


def read(directory: Path) -> list[dict[str, object]]:
    text = (directory / EVENTS_FILE).read_bytes().decode()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def started(count: int, first: int = 0) -> StartedLines:
    numbers = range(first, first + count)
    common = {"kind": "task", "state": "waiting"}
    names, positions = ['a \u00e9"' for _ in numbers], [-1] + [3] * (count - 1)
    return StartedLines(common, "run-", list(numbers), names, positions, [0.5] * count)


@given(st.lists(st.lists(st.integers(2, 9000), min_size=1, max_size=30), max_size=12))
def test_no_line_crosses_the_boundary_of_two_pages(batches: list[list[int]]) -> None:
    file = os.memfd_create("lines")
    try:
        wanted = []
        for sizes in batches:
            lines = [json.dumps("x" * (size - 2)) for size in sizes]
            wanted += lines
            append(file, "".join(f"{line}\n" for line in lines).encode())
        data = os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)
    assert [json.dumps(json.loads(line)) for line in data.splitlines()] == wanted
    begin = 0
    for line in data.splitlines(keepends=True):
        end = begin + len(line)
        if len(line.rstrip()) + 1 <= PAGE:
            assert begin // PAGE == (end - 1) // PAGE
        begin = end


def test_an_unfinished_line_is_dropped_by_the_next_writer(tmp_path: Path) -> None:
    (tmp_path / EVENTS_FILE).write_text('{"run":"a"}\n{"run":"a","na')
    log = EventLog(tmp_path, "b")
    log.add(PlainLines([{"run": "b"}]), 1)
    log.close()
    assert read(tmp_path) == [{"run": "a"}, {"run": "b"}]


def test_lines_of_many_tasks_are_those_of_each(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "run")
    log.add(started(2), 2)
    log.add(
        EndedLines({"state": "done"}, "run-", [7], ["n"], [0], [9.5], [0.25], [-1.0]),
        1,
    )
    log.close()
    base = {"kind": "task", "state": "waiting", "created": 0.5}
    assert read(tmp_path) == [
        {**base, "uid": "run-0", "name": 'a \u00e9"'},
        {**base, "uid": "run-1", "name": 'a \u00e9"[3]'},
        {
            "state": "done",
            "uid": "run-7",
            "name": "n[0]",
            "started": 9.25,
            "ended": 9.5,
            "seconds": 0.25,
            "cpu_seconds": None,
        },
    ]


def test_a_burst_is_kept_first_and_formatted_when_the_program_rests(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "run")
    for first in range(0, 30_000, 5_000):
        log.add(started(5_000, first), 5_000)
    log.add(PlainLines([{"last": True}]), 1)
    wait_until(lambda: not list(tmp_path.glob("events.pending-*")))
    events = read(tmp_path)
    assert len(events) == 30_001
    assert events[-1] == {"last": True}
    assert [event["uid"] for event in events[:-1]] == [f"run-{n}" for n in range(30_000)]
    log.close()


def test_closing_formats_what_is_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "_REST_SECONDS", 60.0)
    monkeypatch.setattr(event_log, "_MAX_PENDING_SECONDS", 60.0)
    log = EventLog(tmp_path, "run")
    log.add(started(9_000), 9_000)
    log.close()
    assert len(read(tmp_path)) == 9_000
    assert [path.name for path in tmp_path.iterdir()] == [EVENTS_FILE]


def test_a_full_disk_ends_the_log_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path, "run")
    log.add(PlainLines([{"first": 1}]), 1)
    write = os.pwrite
    room = [5000]

    def limited(file: int, data: bytes, offset: int) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        size = min(len(data), room[0])
        room[0] -= size
        return write(file, data[:size], offset)

    monkeypatch.setattr(event_log.os, "pwrite", limited)
    log.add(started(200), 200)
    monkeypatch.undo()
    assert log.failure is not None
    log.add(PlainLines([{"last": 1}]), 1)
    log.close()
    events = read(tmp_path)
    assert 10 < len(events) < 200
    assert {"last": 1} not in events


WRITER = """
import os, sys, random
from pathlib import Path
from daskbatch.records.event_lines import PlainLines, StartedLines
from daskbatch.records.event_log import EventLog

log = EventLog(Path(sys.argv[1]), sys.argv[2])
rng = random.Random(int(sys.argv[3]))
number = 0
while True:
    count = rng.choice([1, 1, 5, 40, 3000])
    if count < 3000:
        log.add(PlainLines([{"n": n, "x": "y" * rng.randrange(700)} for n in
                            range(number, number + count)]), count)
    else:
        names = ["a"] * count
        numbers = list(range(number, number + count))
        more = [-1] * count, [0.5] * count
        log.add(StartedLines({"s": 1}, "u-", numbers, names, *more), count)
    number += count
    # The program has been told of these.
    os.write(1, f"{number}\\n".encode())
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_writer_that_is_killed_leaves_whole_lines_and_all_that_it_had_told(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    told: dict[str, int] = {}
    for run in ("one", "two"):
        argv = [sys.executable, "-c", WRITER, str(tmp_path), run, str(seed)]
        with killed_if_failed(subprocess.Popen(argv, stdout=subprocess.PIPE)) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randrange(2, 200)):
                last = writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().splitlines()
            told[run] = int(rest[-1] if rest and rest[-1] else last)
        # A reader sees whole lines before anything is completed.
        text = (tmp_path / EVENTS_FILE).read_text()
        for line in text.splitlines()[:-1]:
            json.loads(line)
        assert text.endswith("\n") or not text
    complete(tmp_path)
    numbers = [
        int(str(event["uid"])[2:]) if "uid" in event else int(str(event["n"]))
        for event in read(tmp_path)
    ]
    begins = [position for position, number in enumerate(numbers) if number == 0]
    assert len(begins) == 2
    for run, begin, end in zip(told, begins, [begins[1], len(numbers)], strict=True):
        part = sorted(set(numbers[begin:end]))
        assert part == list(range(len(part)))
        assert len(part) >= told[run]
    assert not list(tmp_path.glob("events.pending-*"))


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "run")
    pid = os.fork()
    if not pid:
        log.add(PlainLines([{"child": 1}]), 1)
        log.close()
        os._exit(0)
    os.waitpid(pid, 0)
    log.add(PlainLines([{"parent": 1}]), 1)
    log.close()
    assert read(tmp_path) == [{"parent": 1}]


def test_two_logs_of_one_directory_do_not_mix_their_lines(tmp_path: Path) -> None:
    logs = [EventLog(tmp_path, name) for name in "ab"]
    lines: Lines = PlainLines([{"x": "y" * 300}] * 20)
    for _ in range(50):
        for log in logs:
            log.add(lines, 20)
    for log in logs:
        log.close()
    assert len(read(tmp_path)) == 2000
