"""The output of a task is captured for it alone, and at most the limit is kept."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import PROJECT

from daskbatch.worker.execution.capture import BoundedText, capturing

LIMIT = 10_000


@contextlib.contextmanager
def worker_streams() -> Iterator[io.StringIO]:
    """Replace the worker's stdout and stderr, and check that they are restored at the end."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield stream
        assert sys.stdout is stream
        assert sys.stderr is stream


# -- what is captured ---------------------------------------------------------------------


def test_whatever_is_written_to_stdout_and_stderr_is_captured() -> None:
    with worker_streams() as outside:
        with capturing(LIMIT) as capture:
            print("one", end=" ")
            sys.stdout.write("two ")
            sys.stdout.writelines(["three", " "])
            print("four", file=sys.stdout, flush=True)
            print("wrong", file=sys.stderr)
        assert capture.texts() == ("one two three four", "wrong")
        assert outside.getvalue() == ""


def test_bytes_and_text_keep_their_order() -> None:
    with worker_streams():
        with capturing(LIMIT) as capture:
            print("a")
            assert sys.stdout.buffer.write(b"b\n") == 2
            print("c")
            sys.stderr.buffer.write(memoryview(b"err"))
            sys.stdout.buffer.flush()
        assert capture.texts() == ("a\nb\nc", "err")


@pytest.mark.parametrize(
    ("written", "text"), [("", ""), ("\n", ""), ("a\n\n", "a\n"), ("\na", "\na"), ("a \n", "a ")]
)
def test_at_most_one_newline_is_removed_from_the_end(written: str, text: str) -> None:
    with capturing(LIMIT) as capture:
        sys.stdout.write(written)
    assert capture.texts() == (text, "")


def test_a_cleared_capture_begins_anew() -> None:
    with capturing(LIMIT) as capture:
        sys.stderr.write("x")
        assert capture.texts() == ("", "x")
        capture.clear()
        assert capture.texts() == ("", "")
        print("again")
    assert capture.texts() == ("again", "")


def test_text_that_is_no_unicode_is_captured_in_some_form() -> None:
    with capturing(LIMIT) as capture:
        print("a\udc80b")
        sys.stdout.buffer.write(b"\xff\n")
    assert re.fullmatch("a.+b\n\ufffd", capture.texts()[0])


def test_a_task_cannot_close_the_streams() -> None:
    with worker_streams() as outside:
        with capturing(LIMIT) as capture:
            sys.stdout.close()
            print("still there")
        assert (capture.texts()[0], outside.closed) == ("still there", False)


def test_the_stream_may_be_flushed_when_the_one_before_is_closed() -> None:
    """Python flushes a stream that is garbage."""
    outside = io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(outside):
        with capturing(LIMIT):
            kept = sys.stdout
        outside.close()
        kept.flush()
        kept.buffer.flush()


def test_the_stream_says_of_itself_what_holds_for_the_capture() -> None:
    with capturing(LIMIT):
        assert not sys.stdout.isatty()
        assert sys.stdout.writable()
        assert sys.stdout.encoding.lower() == "utf-8"


def test_the_stream_can_be_reconfigured_as_that_of_a_script_can() -> None:
    with capturing(LIMIT) as capture:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        print("done")
    assert capture.texts()[0] == "done"


# -- descriptors --------------------------------------------------------------------------


def test_what_a_process_writes_to_the_descriptor_keeps_its_place() -> None:
    with worker_streams() as outside:
        with capturing(LIMIT) as capture:
            print("one")
            os.write(sys.stdout.fileno(), b"two\n")
            print("three")
            os.write(sys.stdout.buffer.fileno(), b"four")
            os.write(sys.stderr.fileno(), b"an error")
        assert capture.texts() == ("one\ntwo\nthree\nfour", "an error")
        assert outside.getvalue() == ""


def test_the_descriptor_belongs_to_the_task_alone() -> None:
    with capturing(LIMIT) as first:
        number = sys.stdout.fileno()
        with capturing(LIMIT) as second:
            assert sys.stdout.fileno() != number
            os.write(sys.stdout.fileno(), b"second")
        os.write(number, b"first")
        assert sys.stdout.fileno() == number
    assert (first.texts()[0], second.texts()[0]) == ("first", "second")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_much_that_is_written_to_the_descriptor_is_cut_in_the_middle() -> None:
    with capturing(LIMIT) as capture:
        for number in range(40):
            os.write(sys.stdout.fileno(), b"%d" % (number % 10) * 100_000)
            if number % 9 == 0:
                print("x", end="")
    text = capture.texts()[0]
    assert (text[0], text[-1]) == ("0", "9")
    assert "bytes dropped" in text


def test_a_capture_that_is_cleared_forgets_what_was_written_to_the_descriptor() -> None:
    with capturing(LIMIT) as capture:
        os.write(sys.stdout.fileno(), b"one")
        capture.clear()
        os.write(sys.stdout.fileno(), b"two")
    assert capture.texts()[0] == "two"


def test_the_stream_has_all_attributes_of_a_stream_of_a_script() -> None:
    with capturing(LIMIT):
        for name in dir(io.TextIOWrapper):
            if not name.startswith("__"):
                assert hasattr(sys.stdout, name), name
        for name in dir(io.BufferedWriter):
            if not name.startswith("_"):
                assert hasattr(sys.stdout.buffer, name), name


# -- threads and coroutines ---------------------------------------------------------------


def test_a_thread_writes_for_the_task_that_has_started_it() -> None:
    with worker_streams() as outside:
        with capturing(LIMIT) as capture:
            thread = threading.Thread(target=print, args=("for the task",))
            thread.start()
            thread.join(30)
        assert capture.texts()[0] == "for the task"
        assert outside.getvalue() == ""


def test_a_thread_that_outlives_its_task_writes_for_no_other() -> None:
    with worker_streams() as outside:
        go, written = threading.Event(), threading.Event()

        def write() -> None:
            assert go.wait(30)
            print("late", flush=True)
            written.set()

        with capturing(LIMIT) as capture:
            threading.Thread(target=write).start()
            capture.end_task()
            capture.clear()
            print("the next task")
            go.set()
            assert written.wait(30)
            assert capture.texts()[0] == "the next task"
        assert outside.getvalue() == "late\n"


@pytest.mark.skipif(sys.version_info < (3, 14), reason="needs the option: Python 3.14")
def test_the_same_where_threads_inherit_the_context() -> None:
    test = f"{__file__}::{test_a_thread_that_outlives_its_task_writes_for_no_other.__name__}"
    command = [sys.executable, "-X", "thread_inherit_context=1", "-m", "pytest", "-q", test]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert "1 passed" in done.stdout, done.stdout


def test_threads_that_write_at_once_lose_nothing() -> None:
    with capturing(LIMIT * 1000) as capture:
        threads = [
            threading.Thread(target=lambda: [print("x") for _ in range(500)]) for _ in "abcd"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert capture.texts()[0].replace("\n", "") == "x" * 2000


def test_two_threads_at_once_have_an_output_each() -> None:
    with worker_streams():
        meet = threading.Barrier(2, timeout=30)
        texts = {}

        def work(name: str) -> None:
            with capturing(LIMIT) as capture:
                for number in range(100):
                    meet.wait()
                    print(name, number)
                    print(name, number, file=sys.stderr)
            texts[name] = capture.texts()

        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for name in "ab":
            expected = "\n".join(f"{name} {number}" for number in range(100))
            assert texts[name] == (expected, expected)


def test_one_that_ends_first_does_not_end_the_capture_of_the_other() -> None:
    with worker_streams():
        began, ended = threading.Event(), threading.Event()
        texts = []

        def longer() -> None:
            with capturing(LIMIT) as capture:
                began.set()
                assert ended.wait(30)
                print("afterwards")
            texts.append(capture.texts()[0])

        thread = threading.Thread(target=longer)
        with capturing(LIMIT):
            thread.start()
            assert began.wait(30)
        ended.set()
        thread.join(30)
        assert texts == ["afterwards"]


def test_who_does_not_capture_writes_where_it_always_did() -> None:
    with worker_streams() as outside:
        began, done = threading.Event(), threading.Event()

        def task() -> None:
            with capturing(LIMIT):
                began.set()
                assert done.wait(30)

        thread = threading.Thread(target=task)
        thread.start()
        assert began.wait(30)
        print("from elsewhere", flush=True)
        done.set()
        thread.join(30)
        assert outside.getvalue() == "from elsewhere\n"


def test_to_thread_and_coroutines_write_for_their_task() -> None:
    with worker_streams():

        async def say(text: str) -> None:
            await asyncio.sleep(0)
            print(text)

        async def main() -> None:
            await asyncio.to_thread(print, "from a thread")
            await asyncio.gather(say("one"), say("two"))

        with capturing(LIMIT) as capture:
            asyncio.run(main())
        assert sorted(capture.texts()[0].splitlines()) == ["from a thread", "one", "two"]


def test_coroutines_that_capture_at_once_have_an_output_each() -> None:
    with worker_streams():

        async def work(name: str) -> str:
            with capturing(LIMIT) as capture:
                for _ in range(3):
                    print(name)
                    await asyncio.sleep(0)
            return capture.texts()[0]

        async def main() -> list[str]:
            return await asyncio.gather(work("a"), work("b"))

        assert asyncio.run(main()) == ["a\na\na", "b\nb\nb"]


# -- logging ------------------------------------------------------------------------------


def new_logger() -> logging.Logger:
    """A logger without handlers of pytest or of other tests."""
    return logging.Logger("daskbatch.test_capture")


def test_logging_without_a_handler_is_captured() -> None:
    logger = new_logger()
    with capturing(LIMIT) as capture:
        logger.warning("careful")
    assert capture.texts() == ("", "careful")


def test_a_handler_made_in_one_task_writes_for_each_that_logs() -> None:
    logger = new_logger()
    with worker_streams() as outside:
        with capturing(LIMIT) as first:
            logger.addHandler(logging.StreamHandler())
            logger.warning("one")
        logger.warning("between")
        with capturing(LIMIT) as second:
            logger.warning("two")
        assert (first.texts(), second.texts()) == (("", "one"), ("", "two"))
        assert outside.getvalue() == "between\n"


def test_a_handler_made_outside_of_tasks_writes_for_each_that_logs() -> None:
    logger = logging.getLogger("daskbatch.test_capture")
    logger.propagate = False
    with worker_streams() as outside:
        logger.addHandler(logging.StreamHandler())
        with capturing(LIMIT) as capture:
            logger.warning("careful")
        logger.warning("afterwards")
        assert capture.texts() == ("", "careful")
        assert outside.getvalue() == "afterwards\n"
    logger.handlers.clear()


# -- limits -------------------------------------------------------------------------------

CUT = re.compile(r"(.*)\n\[daskbatch: (\d+) bytes dropped[^\n]*\]\n?(.*)", re.DOTALL)


def test_what_fits_is_kept_whole_and_what_does_not_loses_its_middle() -> None:
    with capturing(100) as capture:
        sys.stdout.write("x" * 100)
        sys.stderr.write("a" * 50 + "b" * 7 + "c" * 50)
    whole, cut = capture.texts()
    assert whole == "x" * 100
    lines = cut.splitlines()
    assert (lines[0], lines[2]) == ("a" * 50, "c" * 50)
    assert lines[1] == "[daskbatch: 7 bytes dropped, see daskbatch.output-limit]"


@settings(deadline=None, max_examples=300)
@given(
    text=st.text("ab\nüß→日😀", max_size=200),
    limit=st.integers(1, 150),
    cuts=st.lists(st.integers(1, 60), max_size=50),
)
def test_head_and_tail_are_kept_however_it_was_written(
    text: str, limit: int, cuts: list[int]
) -> None:
    whole = text.encode()
    kept = BoundedText(limit)
    rest = whole
    for cut in cuts:
        kept.add(rest[:cut])
        rest = rest[cut:]
    kept.add(rest)
    if len(whole) <= limit:
        assert kept.text() == text.removesuffix("\n")
        return
    match = CUT.fullmatch(kept.text())
    assert match is not None
    head, dropped, tail = match.group(1), int(match.group(2)), match.group(3)
    assert text.startswith(head)
    assert text.removesuffix("\n").endswith(tail)
    # A character that is cut is left out: it has at most four bytes, and a newline has one.
    size = len(head.encode()) + len(tail.encode())
    assert limit - 7 <= size <= limit
    assert len(whole) - limit <= dropped <= len(whole) - size


def test_nothing_is_kept_where_nothing_is_asked_for() -> None:
    with capturing(0) as capture:
        print("one")
        print("two")
    assert "8 bytes dropped" in capture.texts()[0]
    assert not {"one", "two"} & set(capture.texts()[0].split())


def test_characters_written_in_pieces_are_put_together() -> None:
    with capturing(LIMIT) as capture:
        for byte in "größe 😀".encode():
            sys.stdout.buffer.write(bytes([byte]))
    assert capture.texts()[0] == "größe 😀"


def test_an_endless_output_takes_no_more_memory_than_its_limit() -> None:
    with capturing(20_000) as capture:
        tracemalloc.start()
        try:
            for number in range(2000):
                sys.stdout.write(f"{number:9}\n" * 1000)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 1_000_000
    assert len(capture.texts()[0]) < 21_000
    assert capture.texts()[0].endswith("     1999")


# -- afterwards ---------------------------------------------------------------------------


def test_an_exception_ends_the_capture_too() -> None:
    with worker_streams() as outside:
        with contextlib.suppress(ZeroDivisionError), capturing(LIMIT) as capture:
            print("before")
            raise ZeroDivisionError
        assert capture.texts()[0] == "before"
        print("after")
        assert outside.getvalue() == "after\n"


def test_an_inner_capture_takes_what_is_written_in_it_and_gives_back() -> None:
    with worker_streams() as outside:
        with capturing(LIMIT) as outer:
            print("one")
            with capturing(LIMIT) as inner:
                print("two")
            print("three")
        print("four")
        assert (outer.texts()[0], inner.texts()[0]) == ("one\nthree", "two")
        assert outside.getvalue() == "four\n"


def test_a_task_may_redirect_its_output_for_a_while() -> None:
    with worker_streams():
        own = io.StringIO()
        with capturing(LIMIT) as capture:
            print("one")
            with contextlib.redirect_stdout(own):
                print("two")
            print("three")
        assert (capture.texts()[0], own.getvalue()) == ("one\nthree", "two\n")


def test_a_stream_that_was_put_there_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    other = io.StringIO()
    with capturing(LIMIT):
        sys.stdout = other
    assert sys.stdout is other
    print("one")
    with capturing(LIMIT) as capture:
        print("two")
    assert sys.stdout is other
    assert (other.getvalue(), capture.texts()[0]) == ("one\n", "two")


def test_a_redirection_that_outlives_a_capture_ends_well() -> None:
    with worker_streams() as outside:
        redirected = contextlib.redirect_stdout(io.StringIO())
        with capturing(LIMIT):
            redirected.__enter__()
        redirected.__exit__(None, None, None)
        print("one", flush=True)
        assert outside.getvalue() == "one\n"
        with capturing(LIMIT) as capture:
            print("two")
        assert capture.texts()[0] == "two"


def test_a_stream_kept_from_a_task_writes_to_the_worker_afterwards() -> None:
    content = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(content)), capturing(LIMIT) as capture:
        kept = sys.stdout
        print("for the task", flush=True)
    print("late", file=kept, flush=True)
    assert capture.texts()[0] == "for the task"
    assert content.getvalue() == b"late\n"


def test_a_process_without_streams_can_run_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with capturing(LIMIT) as capture:
        print("nowhere")
        print("somewhere", file=sys.stderr)
    assert sys.stdout is None
    assert capture.texts()[1] == "somewhere"
