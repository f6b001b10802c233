"""Runs random programs while workers, children and executables are killed, and checks the rest.

``PYTHONPATH=tests python -m faults.engine_harness --seeds 0-199`` does so for many seeds. A seed
determines the program and the times of the kills: runs of one seed are similar, but not equal.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import hashlib
import os
import random
import shlex
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from support.programs import last_writers, snapshot

from daskbatch import (
    Batch,
    DependencyFailed,
    ProcessFailed,
    TaskCrashed,
    WorkerLost,
)
from daskbatch.batch.task import Task
from daskbatch.dispatch.open_blocks import next_task, streams

#: A run must be over after this time. Seconds.
PATIENCE = 120.0

#: Names, in the environment, everything that a `FaultyBatch` has started.
RUN = "DASKBATCH_FAULTS"

FILES = ("a", "b", "sub/c", "sub/d", "sub/deep/e")
NAMES = (*FILES, "sub", "sub/deep")

#: A value of this size stays on its worker. Bytes.
LARGE = 108_000

#: From this seed on, programs are those of the seeds from 0 on, but many values are arrays of
#: these sizes. Bytes.
FIRST_ARRAY_SEED = 20_000
ARRAY_BYTES = (300_000, 3_000_000, 20_000_000)


# -- programs ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A task of a random program. It names other steps by their positions, so that it pickles."""

    number: int
    kind: str = "function"
    #: Which of the submissions it belongs to; each has files of its own.
    part: int = 0
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    #: What appends reads, too: it does something else the second time.
    appends: bool = False
    arguments: tuple[int, ...] = ()
    fails: bool = False
    large: bool = False
    #: Its value is an array of this size. Bytes.
    array_bytes: int = 0
    #: The client gives it an array of this size. Bytes.
    given_bytes: int = 0
    #: Whether an executable leaves a process behind; and has another one write for it.
    leaves: bool = False
    detached: bool = False
    seconds: float = 0.0
    #: Tasks of different priorities are never members of the same block.
    priority: int = 0
    #: How many slots it takes at once; an executable is a job with as many ranks.
    slots: int = 1

    @property
    def may_run_again(self) -> bool:
        return not set(files_of(self.reads)) & set(files_of(self.writes))


def files_of(names: Sequence[str]) -> list[str]:
    """Return the files below these names; some names are directories."""
    found: dict[str, None] = {}
    for name in names:
        part, _, rest = name.partition("/")
        for file in FILES:
            if file == rest or file.startswith(f"{rest}/"):
                found[f"{part}/{file}"] = None
    return list(found)


#: From this seed on, programs are stencils and random graphs of short functions, which run in open
#: blocks.
FIRST_FINE_SEED = 10_000

#: From this seed on, the tasks of such programs are short and have two priorities: they wait
#: for members of other open blocks.
FIRST_STREAM_SEED = 11_000

#: From this seed on, the client gives arrays of up to `GIVEN_BYTES` to many tasks of programs like
#: those of the seeds from 10 000 on.
FIRST_GIVEN_SEED = 12_000
GIVEN_BYTES = (100_000, 1_000_000, 8_000_000)

#: From this seed on, some or all of the functions of such programs run in child processes.
FIRST_ISOLATED_SEED = 13_000


def fine_program(seed: int, isolated: bool) -> list[Step]:
    rng = random.Random(f"fine {seed}")
    is_stream = is_stream_seed(seed)
    # The open blocks of one priority leave slots for those of the other one.
    width = rng.choice([1, 2] if is_stream else [3, 5, 8])
    length = width * rng.choice([50, 100, 200] if is_stream else [5, 12, 25])
    is_stencil = rng.random() < 0.5
    busy = rng.choice([0.0, 0.2, 0.5])
    seconds = rng.choice([0.0005, 0.002, 0.01])
    if is_stream:
        busy, seconds = busy / 4, 0.0005
    steps: list[Step] = []
    for number in range(length):
        step, x = divmod(number, width)
        if is_stencil:
            columns = range(max(0, x - 1), min(width, x + 2))
            earlier = [(step - 1) * width + each for each in columns] if step else []
        else:
            near = range(max(0, number - 2 * width), number)
            if is_stream:
                near = range(max(0, step - 1) * width, step * width)
            earlier = rng.sample(near, min(len(near), rng.choice([0, 1, 2, 3])))
        reads, writes = (
            tuple(f"0/{name}" for name in rng.sample(NAMES, 1)) if rng.random() < busy else ()
            for _ in range(2)
        )
        appends = rng.random() < 0.5
        steps.append(
            Step(
                number,
                reads=tuple(dict.fromkeys(reads + writes)) if appends else reads,
                writes=writes,
                appends=appends,
                arguments=tuple(earlier),
                fails=rng.random() < 0.002,
                large=rng.random() < 0.02 and not is_stream,
                seconds=rng.choice([0, seconds, 2 * seconds]),
                priority=step % 2 if is_stream else 0,
            )
        )
    if seed >= FIRST_GIVEN_SEED:
        share = rng.choice([0.1, 0.5])
        steps = [
            replace(each, given_bytes=rng.choice(GIVEN_BYTES)) if rng.random() < share else each
            for each in steps
        ]
    if seed >= FIRST_ISOLATED_SEED and isolated:
        share = rng.choice([0.2, 0.5, 1.0])
        steps = [replace(each, kind="isolated") if rng.random() < share else each for each in steps]
    return steps


def given_by_client(step: Step) -> list[Any]:
    """Return the array that the client gives a step, if it does."""
    if not step.given_bytes:
        return []
    content = f"{step.number:8}".encode()
    return [np.frombuffer(content * (step.given_bytes // len(content)), np.uint8).copy()]


def array_program(seed: int, isolated: bool) -> list[Step]:
    rng = random.Random(f"arrays {seed}")
    sizes = [rng.choice(ARRAY_BYTES) if rng.random() < 0.5 else 0 for _ in range(200)]
    found: list[Step] = []
    for step, size in zip(random_program(seed - FIRST_ARRAY_SEED, isolated), sizes, strict=False):
        # An argument of an executable cannot be that long.
        small = step.kind == "process"
        arguments = [each for each in step.arguments if not (small and found[each].large)]
        is_array = bool(size) and not small
        found.append(
            replace(
                step,
                arguments=tuple(arguments),
                large=step.large or is_array,
                array_bytes=size if is_array else 0,
            )
        )
    return found


def random_program(seed: int, isolated: bool = True) -> list[Step]:
    if seed >= FIRST_ARRAY_SEED:
        return array_program(seed, isolated)
    if seed >= FIRST_FINE_SEED:
        return fine_program(seed, isolated)
    rng = random.Random(f"program {seed}")
    length = rng.choice([12, 25, 50, 120])
    seconds = min(rng.choice([0.0, 0.005, 0.03, 0.15]), 4 / length)
    busy = rng.choice([0.3, 0.6, 0.9])
    executables = rng.choice([0.0, 0.1, 0.3])
    children = rng.choice([0.0, 0.1, 0.3]) if isolated else 0.0
    large = rng.choice([0.0, 0.1, 0.4])
    second = rng.randrange(length) if rng.random() < 0.4 else length
    steps: list[Step] = []
    for number in range(length):
        part = int(number >= second)
        kind = rng.choices(
            ["process", "isolated", "function"],
            [executables, children, 1 - executables - children],
        )[0]
        reads, writes = (
            tuple(f"{part}/{name}" for name in rng.sample(NAMES, rng.choice([0, 1, 1, 2])))
            if rng.random() < busy
            else ()
            for _ in range(2)
        )
        appends = rng.random() < 0.3
        earlier = range(max(0, number - rng.choice([1, 3, 20])), number)
        if kind == "process":
            # An argument of an executable cannot be that long.
            earlier = [each for each in earlier if not steps[each].large]  # type: ignore[assignment]
        steps.append(
            Step(
                number,
                kind,
                part,
                tuple(dict.fromkeys(reads + writes)) if appends else reads,
                writes,
                appends,
                tuple(rng.sample(earlier, min(len(earlier), rng.choice([0, 0, 1, 2])))),
                fails=rng.random() < 0.01,
                large=kind != "process" and rng.random() < large,
                leaves=rng.random() < 0.3,
                detached=rng.random() < 0.5,
                seconds=rng.choice([0, seconds, 2 * seconds]),
            )
        )
    # Drawn apart from all else: the programs of the seeds stay what they were.
    rng = random.Random(f"gangs {seed}")
    share = rng.choice([0.0, 0.1, 0.3])
    return [replace(step, slots=2) if rng.random() < share else step for step in steps]


def text_of(value: Any) -> Any:
    """Return a value, or what stands for an array in logs and comparisons."""
    if not isinstance(value, np.ndarray):
        return value
    return f"array of {value.nbytes} bytes, {hashlib.sha256(value).hexdigest()[:12]}"


def act(root: str, step: Step, *values: Any) -> Any:
    """Execute a step; record in a log that it begins and that it is done."""
    attempt = uuid.uuid4().hex[:8]
    _log(root, "begun", f"{step.number} {attempt} {os.getpid()} {time.time()}")
    state = [repr(tuple(map(text_of, values))), str(step.number)]
    for each in values:
        if isinstance(each, np.ndarray):
            each[:] = step.number  # which nobody else sees
    for name in files_of(step.reads):
        state.append(f"{name}={_content(root, name)}")
    result = _digest("|".join(state))
    time.sleep(step.seconds / 2)
    for name in files_of(step.writes):
        with Path(root, name).open("a" if step.appends else "w") as file:
            file.write(f"{step.number}:")
            file.flush()
            time.sleep(step.seconds / 10)
            file.write(f"{result}\n")
    time.sleep(step.seconds / 2)
    value: Any = result * (LARGE // len(result)) if step.large else result
    if step.array_bytes:
        value = np.frombuffer(result.encode() * (step.array_bytes // len(result)), np.uint8).copy()
    _log(root, "done", f"{step.number} {attempt} {os.getpid()} {time.time()} {result}")
    if step.fails:
        raise ValueError(f"step {step.number} fails after {result}")
    return value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _content(root: str, name: str) -> str:
    path = Path(root, name)
    return path.read_text() if path.exists() else ""


def _log(root: str, name: str, line: str) -> None:
    file = os.open(f"{root}/{name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def script(root: str, step: Step) -> str:
    """Return a shell script that does what a step does."""
    into = ">>" if step.appends else ">"
    base = shlex.quote(root)
    write = "; ".join(
        f"printf {step.number}: {into} {base}/{name}; sleep {step.seconds / 10:.3f};"
        f' printf "%s\\n" "$text" >> {base}/{name}'
        for name in files_of(step.writes)
    )
    if write and step.detached:
        write = f"export text; setsid sh -c {shlex.quote(write)} & wait $!"
    said = "; ".join(
        f"printf '%s' '{name}='; cat {base}/{name} 2>/dev/null" for name in files_of(step.reads)
    )
    line = f"printf '%s %s %s %s %s\\n' {step.number} $$ $$ $(date +%s.%N)"
    return "\n".join(
        [
            # The first rank of a job does the work.
            '[ "${DASKBATCH_RANK:-0}" = 0 ] || exit 0',
            f"{line} '' >> {base}/begun.log",
            "setsid sleep 300 >/dev/null 2>&1 </dev/null &" if step.leaves else "",
            f"text=$( {{ {said or ':'}; printf '%s\\n' \"$@\" {step.number}; }}"
            " | sha256sum | cut -c1-12 )",
            f"sleep {step.seconds:.3f}",
            write,
            f'{line} "$text" >> {base}/done.log',
            f"exit {3 * step.fails}",
        ]
    )


def execute(root: str, step: Step, *values: Any) -> tuple[str, int]:
    """Do in this process what the script of a step does."""
    said = [f"{name}={_content(root, name)}" for name in files_of(step.reads)]
    # Without a single argument, the shell's printf takes the number alone.
    result = _digest("".join(said) + "".join(f"{each}\n" for each in (*values, step.number)))
    for name in files_of(step.writes):
        with Path(root, name).open("a" if step.appends else "w") as file:
            file.write(f"{step.number}:{result}\n")
    return result, 3 * step.fails


@dataclass(frozen=True)
class Outcome:
    """The outcome of a task: value, failed, skipped, lost, killed or other; and its details."""

    kind: str
    detail: Any = None
    attempt: int = 0


@dataclass
class Expected:
    """The outcome of a sequential run: one for each step, and what each step has written."""

    outcomes: list[Outcome] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)


def run_sequentially(root: Path, steps: Sequence[Step]) -> Expected:
    expected = Expected()
    values: dict[int, Any] = {}
    for step in steps:
        if any(number not in values for number in needs_of(steps, step)):
            expected.outcomes.append(Outcome("skipped"))
            continue
        given = [copy.copy(values[number]) for number in step.arguments] + given_by_client(step)
        if step.kind == "process":
            text, code = execute(str(root), step, *given)
            outcome = Outcome("failed", code) if code else Outcome("value", 0)
        else:
            try:
                value = act(str(root), _quick(step), *given)
                values[step.number] = value
                outcome = Outcome("value", text_of(value))
                text = bytes(value[:12]).decode() if step.array_bytes else value[:12]
            except ValueError as error:
                outcome, text = Outcome("failed", str(error)), str(error).rpartition(" ")[2]
        expected.texts[step.number] = text
        if step.kind == "process" and outcome.kind == "value":
            values[step.number] = outcome.detail
        expected.outcomes.append(outcome)
    return expected


def _quick(step: Step) -> Step:
    return Step(**{**step.__dict__, "seconds": 0.0})


def needs_of(steps: Sequence[Step], step: Step) -> set[int]:
    """Return the steps that a step needs: its arguments, and the steps whose writes it reads."""
    return {*step.arguments, *last_writers(steps, step)}  # type: ignore[arg-type]


# -- the killer -------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """A process that was killed, and when; of an executable, also its step."""

    kind: str
    pid: int
    when: float
    number: int = -1


class Killer(threading.Thread):
    """Kills processes of a cluster at times that are drawn in advance.

    Parameters
    ----------
    host : psutil.Process
        The process of the embedded cluster.
    seed : int
        The seed of the times and targets.
    """

    def __init__(self, host: psutil.Process, seed: int) -> None:
        super().__init__(name="killer", daemon=True)
        rng = random.Random(f"kills {seed}")
        pause = rng.choice([0.1, 0.3, 0.8])
        self._plan = [
            (
                rng.uniform(0, 2 * pause),
                rng.choices(["worker", "child", "executable"], [6, 2, 3])[0],
                rng.random(),
            )
            for _ in range(rng.choice([2, 4, 6, 8]))
        ]
        #: Whether it goes on while results are asked for.
        self.persists = rng.random() < 0.5
        self.kills: list[Kill] = []
        self._host = host
        self._over = threading.Event()

    def stop(self) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        for pause, kind, where in self._plan:
            if self._over.wait(pause):
                return
            with contextlib.suppress(psutil.Error):
                found = targets(self._host)
                # There is nearly always a worker; the others come and go.
                some = found[kind] or found["worker"]
                if some:
                    self._kill(kind if found[kind] else "worker", some[int(where * len(some))])

    def _kill(self, kind: str, process: psutil.Process) -> None:
        if kind != "executable":
            process.kill()
            self.kills.append(Kill(kind, process.pid, time.time()))
            return
        number = int(process.cmdline()[3].removeprefix("faults-"))
        self.kills.append(Kill(kind, process.pid, time.time(), number))
        tree: list[psutil.Process] = []
        for _ in range(2):  # what is stopped starts nothing more
            for each in [process, *process.children(recursive=True)]:
                if each not in tree:
                    with contextlib.suppress(psutil.Error):
                        each.suspend()
                        tree.append(each)
        for each in tree:
            with contextlib.suppress(psutil.Error):
                each.kill()


def targets(host: psutil.Process) -> dict[str, list[psutil.Process]]:
    """Return the processes that may be killed: workers, and the processes that they started."""
    found: dict[str, list[psutil.Process]] = {"worker": [], "child": [], "executable": []}
    for server in host.children():
        if server.cmdline() != host.cmdline():
            continue  # it is not the fork server, which is a copy of the cluster process
        found["worker"] = sorted(server.children(), key=lambda each: each.pid)
        for worker in found["worker"]:
            with contextlib.suppress(psutil.Error):
                for each in worker.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        kind = _kind(each)
                        if kind:
                            found[kind].append(each)
    return found


def _kind(process: psutil.Process) -> str:
    command = process.cmdline()
    if command[:2] == ["sh", "-c"] and len(command) > 3 and command[3].startswith("faults-"):
        return "executable"
    return "child" if "daskbatch.worker.isolation.child_main" in " ".join(command) else ""


# -- runs -------------------------------------------------------------------------------


class Violation(AssertionError):
    """Raised when something that must hold does not hold."""


@dataclass
class Tally:
    """Counts of what happened, over all runs."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.counts.update(other.counts)
        self.violations += other.violations

    def __str__(self) -> str:
        said = ", ".join(f"{what} {count}" for what, count in sorted(self.counts.items()))
        return f"{len(self.violations)} violations; {said}"


class FaultyBatch:
    """A Batch whose processes are killed; at the end, no process of it may exist.

    Parameters
    ----------
    workers : int
        How many it has.
    """

    def __init__(self, workers: int) -> None:
        self._name = uuid.uuid4().hex
        before = set(psutil.Process().children())
        os.environ[RUN] = self._name
        try:
            self.batch = Batch(num_workers=workers)
        finally:
            del os.environ[RUN]
        new = set(psutil.Process().children()) - before
        (self.host,) = (
            each for each in new if "daskbatch.cluster.embedded" in " ".join(each.cmdline())
        )

    def close(self) -> list[str]:
        """Close and join the Batch; return what is wrong."""
        self.batch.close()
        try:
            self.batch.join(timeout=60)
        except Exception as error:
            self.batch.terminate()
            return [f"join: {error!r}"]
        return self._left_behind()

    def abandon(self) -> list[str]:
        """End the Batch even if it hangs."""
        self.batch.terminate()
        return self._left_behind()

    def _left_behind(self) -> list[str]:
        # The wardens look a little longer whether there is anything left to end.
        end = time.monotonic() + 15
        while (left := list(self._carriers())) and time.monotonic() < end:
            time.sleep(0.1)
        return [f"left behind: {each}" for each in left]

    def _carriers(self) -> Iterator[str]:
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if each.environ().get(RUN) == self._name:
                    yield f"{each.pid} {each.cmdline()}"


class Run:
    """One run of a program while processes are killed.

    Parameters
    ----------
    faulty : FaultyBatch
        Where it runs.
    seed : int
        Which program, and which kills.
    root : Path
        A directory for this run only.
    isolated : bool
        Whether some functions run with `isolation="process"`.
    """

    def __init__(self, faulty: FaultyBatch, seed: int, root: Path, isolated: bool = True) -> None:
        self._batch = faulty.batch
        self._seed = seed
        self._root = root
        self._steps = random_program(seed, isolated)
        self._killer = Killer(faulty.host, seed)
        self._outcomes: list[Outcome] = []
        self._wrong: list[str] = []
        self.tally = Tally()
        self.hangs = False

    def __call__(self) -> Tally:
        for which in ("expected", "found"):
            for part in (0, 1):
                (self._root / which / str(part) / "sub" / "deep").mkdir(parents=True)
        self._expected = run_sequentially(self._root / "expected", self._steps)
        self._files = self._root / "found"
        self._deadline = time.monotonic() + PATIENCE
        self._killer.start()
        try:
            self._run()
        except TimeoutError as error:
            self.hangs = True
            self._killer.stop()
            self._wrong.append(f"hang: {error}; {[task.state for task in self._tasks]}")
            with contextlib.suppress(Exception):
                self._wrong.append(str(self._batch.client.run_on_scheduler(_scheduled)))
            for block in self._batch._session.dispatcher.table.live.values():
                key, left, future = block.key, block.unfinished, block.future
                self._wrong.append(f"block {key}: {left} left, lost {block.lost}, {future}")
        else:
            self._killer.stop()
            self._go_on()
            if not self.hangs:
                self._check()
        counts = self.tally.counts
        counts["runs"] += 1
        counts["gangs"] += sum(step.slots > 1 for step in self._steps)
        counts.update(f"killed {kill.kind}" for kill in self._killer.kills)
        counts.update(f"outcome {outcome.kind}" for outcome in self._outcomes)
        if self._wrong:
            self.tally.violations.append(self._report())
        return self.tally

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _run(self) -> None:
        self._tasks: list[Task] = []
        for step in self._steps:
            self._tasks.append(self._make(step))
        for part in (0, 1):
            some = [
                task
                for task, step in zip(self._tasks, self._steps, strict=True)
                if step.part == part
            ]
            if some:
                self._batch.compile(some).run(timeout=self._left())
        if not self._killer.persists:
            self._killer.stop()
        self._outcomes = [self._outcome(task) for task in self._tasks]

    def _make(self, step: Step) -> Task:
        given = [self._tasks[number].result for number in step.arguments]
        options = self._batch.options(
            reads=[self._batch.read(self._files, name) for name in step.reads],
            writes=[self._batch.write(self._files, name) for name in step.writes],
            name=f"step-{step.number}",
            priority=step.priority,
            isolation="process" if step.kind == "isolated" else None,
            cores=step.slots if step.slots > 1 and step.kind != "process" else None,
        )
        root = str(self._files)
        if step.kind == "process":
            label = f"faults-{step.number}"
            command = ("sh", "-c", script(root, step), label, *given)
            if step.slots > 1:
                return options.job(*command, num_procs=step.slots)
            return options.process(*command)
        return options.function(act, root, step, *given, *given_by_client(step))

    def _outcome(self, task: Task) -> Outcome:
        try:
            return Outcome("value", text_of(task.result.get(timeout=self._left())))
        except WorkerLost as error:
            self.tally.counts[f"lost at attempt {error.attempt}"] += 1
            if error.worker is not None:
                self.tally.counts[f"lost with exit code {error.exitcode}"] += 1
            return Outcome("lost", str(error), error.attempt)
        except DependencyFailed as error:
            return Outcome("skipped", int(str(error.root).removeprefix("step-")))
        except ProcessFailed as error:
            kind = "killed" if error.returncode == -signal.SIGKILL else "failed"
            return Outcome(kind, error.returncode)
        except TaskCrashed as error:
            return Outcome("killed", str(error))
        except ValueError as error:
            return Outcome("failed", str(error))
        except TimeoutError:
            raise
        except Exception as error:
            return Outcome("other", repr(error))

    def _go_on(self) -> None:
        """Check that the Batch can still be used."""
        task = self._batch.function(len, "abc")
        try:
            task.run(timeout=60)
            if task.get(timeout=60) != 3:
                self._wrong.append("the next task gives something else")
        except Exception as error:
            self.hangs = True
            self._wrong.append(f"the next task: {error!r}")

    # -- what must hold -------------------------------------------------------------------

    def _check(self) -> None:
        self._begun = self._logged("begun")
        self._done = self._logged("done")
        self._kills = Counter(kill.kind for kill in self._killer.kills)
        for step in self._steps:
            self._check_outcome(step)
            self._check_runs(step)
        self._check_files()

    def _logged(self, name: str) -> dict[int, list[tuple[str, int, float, str]]]:
        found: dict[int, list[tuple[str, int, float, str]]] = {}
        path = self._files / f"{name}.log"
        for line in path.read_text().splitlines() if path.exists() else ():
            number, attempt, pid, when, *text = line.split()
            entry = attempt, int(pid), float(when), text[0] if text else ""
            found.setdefault(int(number), []).append(entry)
        return found

    def _check_outcome(self, step: Step) -> None:
        number = step.number
        found, expected = self._outcomes[number], self._expected.outcomes[number]
        if found.kind == "skipped":
            self._check_skipped(step, found.detail)
        elif found.kind == "lost":
            self._check_lost(step)
        elif found.kind == "killed":
            if not self._was_killed(step):
                self._wrong.append(f"{number}: nobody killed it: {found.detail}")
        elif found != expected:
            self._wrong.append(f"{number}: {_short(found)}, but sequentially {_short(expected)}")

    def _check_skipped(self, step: Step, root: int) -> None:
        if self._outcomes[root].kind in ("value", "skipped"):
            self._wrong.append(f"{step.number}: did not run for {root}, which has not failed")
        needs = needs_of(self._steps, step)
        if all(self._outcomes[number].kind == "value" for number in needs):
            self._wrong.append(f"{step.number}: did not run, though all it needs succeeded")

    def _check_lost(self, step: Step) -> None:
        number = step.number
        if self._expected.outcomes[number].kind == "skipped":
            self._wrong.append(f"{number}: was lost, though it cannot have run")
        if not self._kills["worker"]:
            self._wrong.append(f"{number}: was lost, though no worker was killed")
        needless = step.may_run_again and number not in self._done
        if needless and self._kills["worker"] < 3:
            self._wrong.append(f"{number}: was lost, though it may run again")
        what = "value" if number in self._done else "run"
        self.tally.counts[f"lost the {what}"] += 1

    def _was_killed(self, step: Step) -> bool:
        kills = self._killer.kills
        if step.kind == "process":
            return any(kill.number == step.number for kill in kills)
        # A function of several slots is isolated, too.
        if step.kind != "isolated" and step.slots == 1:
            return False
        children = [kill for kill in kills if kill.kind == "child"]
        begun = self._begun.get(step.number)
        if not begun:
            return bool(children)
        _, last, when, _ = begun[-1]
        # It may have died with its worker, and with its next child before that could begin.
        again = [kill for kill in children if kill.when >= when] and any(
            kill.kind == "worker" and kill.when >= when for kill in kills
        )
        return bool(again) or last in {kill.pid for kill in children}

    def _check_runs(self, step: Step) -> None:
        number = step.number
        begun, done = self._begun.get(number, []), self._done.get(number, [])
        self.tally.counts["tasks"] += 1
        self.tally.counts["runs again"] += max(0, len(begun) - 1)
        for _, _, _, text in done:
            if text != self._expected.texts.get(number):
                self._wrong.append(f"{number}: has written {text!r}")
        if begun and any(
            need not in self._done and need not in self._begun
            for need in needs_of(self._steps, step)
        ):
            self._wrong.append(f"{number}: ran without what it needs")
        if not step.writes:
            return
        if len(begun) > 1 and not step.may_run_again:
            self._wrong.append(f"{number}: ran {len(begun)} times, though it writes what it reads")
        elif len(begun) > 3:
            self._wrong.append(f"{number}: ran {len(begun)} times")
        again = [when for _, _, when, _ in begun if done and when > done[0][2]]
        if again:
            # Between its last line and the end of its run it could not be told from others.
            gap = min(
                (k.when - done[0][2] for k in self._killer.kills if k.when > done[0][2] - 0.01),
                default=99.0,
            )
            # And what is no thread of the worker runs on for a moment, until it is ended.
            outlived = step.kind != "function" and any(
                begun[0][2] <= kill.when <= done[0][2] for kill in self._killer.kills
            )
            if (gap < 0.05 or outlived) and step.may_run_again:
                self.tally.counts["finished, killed at once, and ran again"] += 1
            else:
                self._wrong.append(
                    f"{number}: ran again after it was done; a kill came {gap:.3f} s after that"
                )

    def _check_files(self) -> None:
        found = snapshot(self._files)
        for part in (0, 1):
            for file in files_of([f"{part}/{name}" for name in FILES]):
                content: str | None = ""
                for step in self._steps:
                    if file in files_of(step.writes):
                        content = self._written(step, content)
                if content is None:
                    self.tally.counts["files left half written"] += 1
                elif found.get(file, "") != content:
                    self._wrong.append(
                        f"file {file}: {found.get(file)!r}, but those that ran leave {content!r}"
                    )

    def _written(self, step: Step, before: str | None) -> str | None:
        """Return the contents of a file after a step; None if they are unknown."""
        begun, done = self._begun.get(step.number, []), self._done.get(step.number, [])
        if not begun:
            return before
        if not done or begun[-1][2] > done[-1][2]:
            return None
        text = f"{step.number}:{self._expected.texts.get(step.number)}\n"
        if not step.appends:
            return text
        return None if before is None else before + text

    # -- what is said of it ---------------------------------------------------------------

    def _report(self) -> str:
        begun, done = self._logged("begun"), self._logged("done")
        lines = [f"seed {self._seed}:", *(f"  {each}" for each in self._wrong)]
        start = min((runs[0][2] for runs in begun.values()), default=0.0)
        lines.append("kills:")
        for kill in self._killer.kills:
            lines.append(f"  {kill.when - start:.3f} {kill.kind} {kill.pid} {kill.number}")
        lines.append("program:")
        for step in self._steps:
            said = {k: v for k, v in step.__dict__.items() if v and k != "number"}
            lines.append(f"  {step.number} {said}")
            for what, runs in (("begun", begun), ("done", done)):
                for attempt, pid, when, text in runs.get(step.number, ()):
                    lines.append(f"      {what} {when - start:.3f} {attempt} in {pid} {text}")
            if self._outcomes:
                lines.append(f"      {_short(self._outcomes[step.number])}")
        return "\n".join(lines)


def _scheduled(dask_scheduler: Any) -> Any:
    """Return, on the scheduler, its workers, and the places of keys that are not over."""
    keys = {
        key: (task.state, str(task.processing_on), str(task.run_spec)[:60])
        for key, task in dask_scheduler.tasks.items()
        if task.state != "memory"
    }
    return list(dask_scheduler.workers), keys


def _short(outcome: Outcome) -> str:
    return f"{outcome.kind} {str(outcome.detail)[:300]}"


def is_mapped(path: str) -> bool:
    """Return whether any process has mapped a file."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if f" {path}\n" in maps.read_text():
                return True
    return False


def is_stream_seed(seed: int) -> bool:
    return FIRST_STREAM_SEED <= seed < FIRST_GIVEN_SEED


@contextlib.contextmanager
def tasks_taken_for_short() -> Iterator[None]:
    """Have the tasks here, which look at files and write a log, sent ahead like shorter ones."""
    before = streams._MAX_SECONDS, next_task._AHEAD_SECONDS
    streams._MAX_SECONDS = next_task._AHEAD_SECONDS = 0.1
    try:
        yield
    finally:
        streams._MAX_SECONDS, next_task._AHEAD_SECONDS = before


def run_seeds(
    seeds: Sequence[int], workers: int, directory: Path, isolated: bool = True, told: Any = None
) -> Tally:
    """Run some seeds one after another on one Batch, and then close the Batch."""
    tally = Tally()
    shared_before = set(os.listdir("/dev/shm"))
    faulty = FaultyBatch(workers)
    try:
        for seed in seeds:
            began = time.monotonic()
            run = Run(faulty, seed, directory / str(seed), isolated)
            with tasks_taken_for_short() if is_stream_seed(seed) else contextlib.nullcontext():
                found = run()
            tally.add(found)
            if told is not None:
                told(f"seed {seed}: {time.monotonic() - began:.1f} s, {found}")
                for each in found.violations:
                    told(each)
            if run.hangs:
                tally.violations += faulty.abandon()
                faulty = FaultyBatch(workers)
    finally:
        left = faulty.close()
        shared = set(os.listdir("/dev/shm")) - shared_before
        # Semaphores are those of `multiprocessing`, maybe of other programs. What a process uses
        # now is of another program: those of the Batch have ended.
        remaining = [f"/dev/shm/{each}" for each in shared if not each.startswith("sem.")]
        left += [each for each in remaining if os.path.exists(each) and not is_mapped(each)]
        tally.violations += [f"after the seeds {seeds}: {each}" for each in left]
        if told is not None and left:
            told(f"after the seeds {seeds}: {left}")
    return tally


def has_isolation() -> bool:
    """Return whether functions can run with `isolation="process"`."""
    with Batch(num_workers=1) as batch:
        try:
            task = batch.options(isolation="process").function(len, "abc")
            task.run(timeout=30)
            return bool(task.get() == 3)
        except Exception:
            return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-19", help="such as 0-199, or 7,9")
    parser.add_argument("--workers", type=int, help="by default 2 to 4, by the seed")
    parser.add_argument("--share", type=int, default=5, help="how many seeds share a Batch")
    parser.add_argument("--threads-only", action="store_true", help="isolate nothing")
    given = parser.parse_args()
    seeds: list[int] = []
    for each in given.seeds.split(","):
        first, _, last = each.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    isolated = not given.threads_only and has_isolation()
    tally = Tally()
    for start in range(0, len(seeds), given.share):
        some = seeds[start : start + given.share]
        faulthandler.dump_traceback_later(given.share * (PATIENCE + 90), exit=True)
        with tempfile.TemporaryDirectory(prefix="faults-") as directory:
            workers = given.workers or 2 + some[0] // given.share % 3
            tally.add(run_seeds(some, workers, Path(directory), isolated, _tell))
        _tell(f"until now: {tally}")
    _tell(f"seeds {given.seeds}: {tally}")
    return bool(tally.violations)


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    # Imported, so that the workers import it too, and the functions need not be sent.
    from faults import engine_harness as faults

    sys.exit(faults.main())
