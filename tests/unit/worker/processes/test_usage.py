"""What processes use is measured: of an executable, of a tree, and of one member of a child."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from daskbatch.worker.execution.measures import (
    UNKNOWN_CPU,
    Measures,
    MemberDetails,
    Usage,
    sum_usage,
)
from daskbatch.worker.isolation.own_memory import OwnMemory
from daskbatch.worker.processes.reaping import ProcessMeter
from daskbatch.worker.processes.tree_usage import peak_memory, read_tree

MIB = 1 << 20

#: Uses 100 MiB and 0.2 s of processor time, says so, and waits for its stdin to close.
WORK = """
import os, sys, time
data = bytearray(100 << 20)
while time.process_time() < 0.2: pass
os.write(1, b"ready\\n")
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")


def started(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_a_meter_measures_a_process_from_its_start_to_its_end() -> None:
    with started(WORK) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        meter = ProcessMeter(process)
        assert process.stdout.readline() == b"ready\n"
        meter.look_now()
        process.stdin.close()
        assert meter.wait() == 0
    usage = meter.usage()
    assert usage.pid == process.pid
    assert 0.2 <= usage.cpu_seconds < 20
    assert usage.max_memory is not None
    assert 100 * MIB < usage.max_memory < 160 * MIB


def test_the_memory_of_this_process_is_not_that_of_what_it_starts() -> None:
    held = bytearray(400 * MIB)  # the kernel carries this over to the executable
    held[::4096] = b"x" * len(held[::4096])
    with started("import sys; sys.stdin.read()") as process:
        assert process.stdin is not None
        meter = ProcessMeter(process)
        meter.look_now()
        process.stdin.close()
        assert meter.wait() == 0
    del held
    usage = meter.usage()
    assert usage.max_memory is not None
    assert usage.max_memory < 100 * MIB


def test_a_tree_has_what_all_of_its_processes_use() -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORK!r}])"
    with started(parent) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        used = read_tree(process.pid)
        own = peak_memory(process.pid)
        process.stdin.close()
    assert used.memory > 100 * MIB > own
    assert used.cpu_seconds >= 0.15
    assert read_tree(process.pid).memory == 0


def test_the_peak_of_a_member_is_not_that_of_the_member_before() -> None:
    program = """
import sys
from daskbatch.worker.isolation.own_memory import OwnMemory
memory = OwnMemory()
data = bytearray(200 << 20)
data[::4096] = b"x" * len(data[::4096])
del data
first = memory.peak_of(1.0)
second = memory.peak_of(1.0)
print(first >> 20, second >> 20, memory.peak_of(0.0) >> 20)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    first, second, third = map(int, done.stdout.split())
    assert first > 200
    assert second < 150
    assert third < 150


def test_a_peak_is_known_for_each_member() -> None:
    assert (OwnMemory().peak_of(0.0) or 0) > MIB


def test_usages_are_added() -> None:
    one, other = Usage(1.0, 10, 7), Usage(2.0, 30, 8)
    assert other.after(None) == other
    assert other.after(one) == Usage(3.0, 30, 8)
    assert Usage().after(one) == Usage(1.0, 10, None)
    assert sum_usage([one, other, Usage()], 5) == Usage(3.0, 40, 5)
    assert sum_usage([], None) == Usage(UNKNOWN_CPU, None, None)


def test_measures_are_unpacked_by_position() -> None:
    import array

    ended, cpu = array.array("d", [5.0, 0.0]), array.array("f", [0.5, UNKNOWN_CPU])
    details = {1: MemberDetails(attempts=3, pid=9, max_memory=4)}
    measures = Measures("tcp://h:1", 8, ended.tobytes(), cpu.tobytes(), details)
    assert measures.of(0) == ("tcp://h:1", 8, 1, 5.0, 0.5, None)
    assert measures.of(1) == ("tcp://h:1", 9, 3, None, None, 4)
