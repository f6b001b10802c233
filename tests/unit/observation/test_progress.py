"""Progress is counted, estimated, put into words, and drawn where it fits."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest
from support.processes import killed_if_failed

from daskbatch.describe.spec import Options
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.observation.progress_counts import (
    ProgressCounts,
    count_progress,
    describe_progress,
    estimate_seconds,
)
from daskbatch.observation.progress_display import PlainBar, PlainLines, Terminal, make_display
from daskbatch.worker.execution.measures import MemberBegin

COUNTS = ProgressCounts(total=60, over=12, running=4, failed=1, skipped=2, cancelled=3)


def tasks(*phases: Phase) -> Sequence[TaskRecord]:
    records = [TaskRecord("c", number, "t", None, Options()) for number in range(len(phases))]
    for record, phase in zip(records, phases, strict=True):
        record.phase = phase
    return records


def test_tasks_are_counted_by_their_phases() -> None:
    found = count_progress(tasks(*Phase, Phase.DONE))
    assert found == ProgressCounts(9, over=5, running=1, failed=1, skipped=1, cancelled=1)


def test_the_words_name_all_numbers() -> None:
    text = describe_progress(COUNTS, 65.0, 3600.0)
    assert text == (
        "12 of 60 over, 4 running, 1 failed, 2 skipped, 3 cancelled, 1:05 elapsed, "
        "about 1:00:00 left"
    )


def test_the_time_that_is_left_follows_from_what_was_learnt() -> None:
    waiting = tasks(*[Phase.WAITING] * 6, Phase.DONE)
    assert estimate_seconds(waiting, 2, lambda record: None) is None
    assert estimate_seconds(waiting, 2, lambda record: 1.0) == 3.0
    # A kind that is not known counts as the mean of the others.
    assert estimate_seconds(waiting, 2, lambda record: 2.0 if record.number < 3 else None) == 6.0
    # The longest task alone takes longer than all of them on their slots.
    assert estimate_seconds(waiting, 100, lambda record: float(record.number)) == 5.0
    assert estimate_seconds(tasks(Phase.DONE), 2, lambda record: None) == 0.0


def test_what_has_run_of_a_task_does_not_count() -> None:
    (running,) = tasks(Phase.RUNNING)
    running.begin = MemberBegin("w", 1, 1, time.time() - 1000)
    assert estimate_seconds([running], 1, lambda record: 1.0) == 0.0


def test_where_stderr_is_no_terminal_there_are_few_lines() -> None:
    stream = io.StringIO()
    display = PlainLines("two\nlines", stream)
    for tenth in range(600):
        display.show(COUNTS, tenth / 10, None)
    display.close()
    display.close()
    lines = stream.getvalue().splitlines()
    assert [line.partition(" elapsed")[0].rpartition(", ")[2] for line in lines] == [
        *("0:02", "0:06", "0:14", "0:30", "1:00")
    ]
    assert all(line.startswith("two?lines: 12 of 60 over") for line in lines)


class Screen(io.StringIO):
    """A terminal that shows the text of its lines."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        shown = []
        for line in self.getvalue().split("\n"):
            # What stands behind the last return of the carriage, which has cleared the line.
            shown.append(line.rpartition("\r\x1b[K")[2])
        return shown


def test_what_is_written_meanwhile_stands_above_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    handler = logging.StreamHandler(screen)
    logger = logging.getLogger("test-of-progress")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        terminal = Terminal(screen, lambda stream: PlainBar("run", stream))
        terminal.show(COUNTS, 1.0, None)
        print("printed")
        terminal.show(COUNTS, 2.0, None)
        logger.warning("logged")
        terminal.show(COUNTS, 3.0, None)
        print("no end", end="")
        terminal.show(COUNTS, 4.0, None)  # would be drawn over the text: it is not drawn
        print(" of line")
        terminal.show(COUNTS, 5.0, None)
        terminal.close()
        assert sys.stderr is screen
        assert sys.stdout is screen
        assert handler.stream is screen
    finally:
        logger.removeHandler(handler)
    shown = screen.lines()
    assert shown[:3] == ["printed", "logged", "no end of line"]
    assert shown[3].startswith("run [####")
    assert shown[4:] == [""]


def test_a_stream_that_the_program_has_set_meanwhile_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen, other = Screen(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    terminal = Terminal(screen, lambda stream: PlainBar("run", stream))
    sys.stdout = other
    terminal.close()
    assert sys.stdout is other


PROGRAM = """
import sys
if {without}: sys.modules["tqdm"] = None
from daskbatch.observation.progress_counts import ProgressCounts
from daskbatch.observation.progress_display import make_display
display = make_display("run", 4)
for over in range(5):
    display.show(ProgressCounts(4, over, 1, 0, 0, 0), over, None)
display.close()
"""


@pytest.mark.parametrize("without", [False, True], ids=["tqdm", "plain"])
@pytest.mark.parametrize("columns", [0, 100])
def test_a_terminal_shows_one_line_that_is_redrawn(without: bool, columns: int) -> None:
    termios = pytest.importorskip("termios")
    import fcntl
    import struct

    parent, child = os.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    program = PROGRAM.format(without=without)
    env = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    with killed_if_failed(
        subprocess.Popen([sys.executable, "-c", program], stderr=child, env=env)
    ) as process:
        os.close(child)
        data = b""
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:
                break
            if not part:
                break
            data += part
        assert process.wait() == 0
    os.close(parent)
    text = data.decode()
    assert text.count("\n") == 1
    assert text.count("\r") > 5
    last = text.rstrip().rpartition("\r")[2]
    assert "run" in last
    assert ("4/4" in last) or ("4 of 4 over" in last)
    assert all(len(line) < 130 for line in text.split("\r"))


def test_without_stderr_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    display = make_display("run", 1)
    display.show(COUNTS, 1.0, None)
    display.close()
