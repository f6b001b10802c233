"""Uses a DDict from many sides while workers are killed, and checks what was read and written.

``PYTHONPATH=tests python -m faults.shared_harness --runs 50`` does so many times, with two replicas
and with one. The number of a run determines the times of the kills, so that runs of a number are
similar.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faults.engine_harness import FaultyBatch, Tally

from daskbatch import BatchError, ServiceLost
from daskbatch.batch.task import Task
from daskbatch.shared.ddict import DDict

WORKERS = 3
WRITERS, READERS, KEYS = 4, 4, 6
COUNTERS = ("count/0", "count/1", "count/2")

#: A call must be over, and copies be made again, after this time. Seconds.
PATIENCE, REPAIR = 5.0, 30.0

#: Writers and readers give up after this time. Seconds.
LONGEST = 90.0


# -- those who use it -------------------------------------------------------------------


def key_of(writer: int, number: int) -> str:
    return f"own/{writer}/{number}"


def all_keys() -> list[str]:
    own = [key_of(writer, number) for writer in range(WRITERS) for number in range(KEYS)]
    return [*own, *COUNTERS]


class Log:
    """A file with a line for each call: the call, its outcome, and its time."""

    def __init__(self, root: str, name: str) -> None:
        self._file = os.open(f"{root}/{name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, what: str, key: str, number: int, begin: float) -> None:
        line = f"{what} {key} {number} {begin!r} {time.monotonic()!r}\n"
        os.write(self._file, line.encode())

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Record that a call begins, and, if it was not killed, that it ends."""
        self("begun", "-", 0, 0.0)
        yield
        self("ended", "-", 0, 0.0)
        os.close(self._file)


def write(d: DDict, root: str, writer: int, many: bool, hasty: bool) -> None:
    """Write increasing numbers until the run is over."""
    log, rng = Log(root, f"writer-{writer}"), random.Random(os.urandom(8))
    with log.attempt():
        for key in _until_over(root, rng, [key_of(writer, n) for n in range(KEYS)], hasty):
            begin = time.monotonic()
            number = time.monotonic_ns()
            try:
                kind = rng.random()
                if kind < (0.8 if hasty else 0.3):
                    key = rng.choice(COUNTERS)
                    log("adding", key, 0, begin)
                    log("added", key, d.fetch_add(key), begin)
                elif kind > 0.9 and many:
                    keys = [key_of(writer, n) for n in range(KEYS)]
                    d.put_many({key: (number, key) for key in keys})
                    for key in keys:
                        log("put", key, number, begin)
                else:
                    # What is large travels in another way.
                    large = np.full(rng.choice([1, 5000]), number)
                    d[key] = number, large
                    log("put", key, number, begin)
            except ServiceLost:
                log("lost", key, number, begin)
            except Exception as error:
                log(_word(error), key, number, begin)


def read(d: DDict, root: str, reader: int) -> None:
    """Read keys that others write until the run is over."""
    log, rng = Log(root, f"reader-{reader}"), random.Random(os.urandom(8))
    with log.attempt():
        for key in _until_over(root, rng, all_keys()):
            begin = time.monotonic()
            try:
                value = d.get(key, (0, 0))
                if key in COUNTERS:
                    log("read", key, value if isinstance(value, int) else 0, begin)
                    continue
                number, rest = value
                if isinstance(rest, np.ndarray) and (rest != number).any():
                    log("mixed", key, number, begin)
                log("read", key, number, begin)
            except ServiceLost:
                log("lost", key, 0, begin)
            except Exception as error:
                log(_word(error), key, 0, begin)


def await_key(d: DDict, root: str, key: str) -> None:
    """Wait for a key that is written at the end only."""
    log, begin = Log(root, "waiter-" + key.replace("/", "-")), time.monotonic()
    try:
        log("came", key, int(d[key]), begin)
    except ServiceLost:
        log("lost", key, 0, begin)
    except Exception as error:
        log(_word(error), key, 0, begin)


def _word(error: Exception) -> str:
    return repr(error).replace(" ", "_")[:300]


def _until_over(
    root: str, rng: random.Random, keys: Sequence[str], hasty: bool = False
) -> Iterator[str]:
    end = time.monotonic() + LONGEST
    while not os.path.exists(f"{root}/over") and time.monotonic() < end:
        yield rng.choice(keys)
        time.sleep(0 if hasty else rng.choice([0, 0, 0.001, 0.005]))


class Call(NamedTuple):
    """A line of a log."""

    who: str
    what: str
    key: str
    number: int
    begin: float
    end: float


@dataclass(frozen=True)
class Kill:
    """A worker that was killed, and when."""

    worker: str
    when: float


# -- runs -------------------------------------------------------------------------------


class Run:
    """One dictionary that is used while workers are killed.

    Parameters
    ----------
    faulty : FaultyBatch
        Where it is.
    number : int
        Which run it is.
    replicas : int
        How many copies there are.
    root : Path
        A directory for this run only.
    """

    def __init__(self, faulty: FaultyBatch, number: int, replicas: int, root: Path) -> None:
        self._batch = faulty.batch
        self._client = faulty.batch.client
        self._number = number
        self._rng = random.Random(f"shared {number} {replicas}")
        self._replicas = replicas
        self._root = root
        root.mkdir()
        self._kills: list[Kill] = []
        self._wrong: list[str] = []
        self.tally = Tally()

    def __call__(self) -> Tally:
        self._client.wait_for_workers(WORKERS, timeout=60)
        try:
            with DDict(self._client, replicas=self._replicas, wait_for_keys=True) as d:
                self._use(d)
        except Exception:
            self._wrong.append(traceback.format_exc())
        self.tally.counts["runs"] += 1
        if self._wrong:
            kills = [f"{kill.when:.3f} {kill.worker}" for kill in self._kills]
            self.tally.violations.append(
                f"run {self._number}, replicas={self._replicas}, kills {kills}: "
                + "\n  ".join(self._wrong[:20])
            )
        return self.tally

    def _use(self, d: DDict) -> None:
        homes = {key: d.workers_for([key])[0] for key in [*all_keys(), *self._awaited()]}
        pids = self._client.run(os.getpid)
        threads, tasks = self._begin(d)
        try:
            time.sleep(self._rng.uniform(0.3, 1.5))
            victim = self._rng.choice(sorted(set(homes.values())))
            self._kill(victim, pids[victim])
            if self._replicas > 1:
                self._await_copies(d)
                pids = self._pids()
                other = self._rng.choice(sorted(set(d.workers_for(all_keys())) & set(pids)))
                self._kill(other, pids[other])
            time.sleep(self._rng.uniform(0.5, 1.5))
            if self._replicas > 1:
                self._await_copies(d)
        finally:
            (self._root / "over").touch()
        self._end(d, threads, tasks)
        calls = self._calls()
        if self._replicas == 1:
            self._check_lost(d, calls, homes)
            dead = {kill.worker for kill in self._kills}
            calls = [call for call in calls if homes.get(call.key) not in dead]
        self._check_kept(d, calls)
        self._check_order(calls)

    def _awaited(self) -> list[str]:
        return [f"never/{number}" for number in range(8)]

    def _begin(self, d: DDict) -> tuple[list[threading.Thread], list[Task]]:
        root, many = str(self._root), self._replicas > 1
        uses: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
            # Some of those at the client nearly always have a call under way.
            *((write, (d, root, writer, many, writer in (0, 3))) for writer in range(WRITERS)),
            *((read, (d, root, reader)) for reader in range(READERS)),
        ]
        # A third of them where the workers are: there is one slot on each.
        remote = {1: "thread", 2: "process", 4 + self._number % 2: "thread"}
        if self._number % 3 == 0:
            remote[max(remote)] = "process"
        tasks = [
            self._batch.options(isolation=isolation).function(*_flat(uses[position]))
            for position, isolation in remote.items()
        ]
        for task in tasks:
            task.start()
        local = [use for position, use in enumerate(uses) if position not in remote]
        local += [(await_key, (d, root, key)) for key in self._awaited()]
        threads = [
            threading.Thread(target=function, args=args, daemon=True) for function, args in local
        ]
        for thread in threads:
            thread.start()
        return threads, tasks

    def _kill(self, worker: str, pid: int) -> None:
        self._kills.append(Kill(worker, time.monotonic()))
        os.kill(pid, signal.SIGKILL)
        self.tally.counts["killed"] += 1

    def _pids(self) -> dict[str, int]:
        for _ in range(50):
            with contextlib.suppress(Exception):  # one may be about to go, or to come
                return dict(self._client.run(os.getpid))
            time.sleep(0.1)
        raise AssertionError("the workers do not say who they are")

    def _await_copies(self, d: DDict) -> None:
        begin = time.monotonic()
        while time.monotonic() - begin < REPAIR:
            found = self._client.run_on_scheduler(_members, d._proxy.uid)
            dead = {kill.worker for kill in self._kills}
            if all(len(some) == self._replicas and not dead & set(some) for some in found):
                seconds = int(1000 * (time.monotonic() - self._kills[-1].when))
                longest = self.tally.counts["ms to repair, at most"]
                self.tally.counts["ms to repair, at most"] = max(longest, seconds)
                return
            time.sleep(0.02)
        self._wrong.append(f"copies are not made again: {found}, killed: {self._kills}")

    def _end(self, d: DDict, threads: list[threading.Thread], tasks: list[Task]) -> None:
        for key in self._awaited():
            with contextlib.suppress(ServiceLost):
                d[key] = 1
        end = time.monotonic() + 20
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                self._wrong.append(f"hang: a thread is still there: {thread}")
        for task in tasks:
            try:
                task.get(timeout=60)
                self.tally.counts["tasks that ended"] += 1
            except TimeoutError:
                self._wrong.append(f"hang: a task is still there: {task}")
            except BatchError as error:
                self.tally.counts[f"tasks that {type(error).__name__}"] += 1

    # -- what has to hold -----------------------------------------------------------------

    def _calls(self) -> list[Call]:
        calls = []
        for path in self._root.glob("*.log"):
            for line in path.read_text().splitlines():
                what, key, number, begin, end = line.split()
                calls.append(Call(path.stem, what, key, int(number), float(begin), float(end)))
        allowed = {"begun", "ended", "put", "adding", "added", "read", "came"}
        allowed |= {"lost"} if self._replicas == 1 else set()
        for call in calls:
            self.tally.counts[call.what] += 1
            if call.what not in allowed:
                self._wrong.append(f"failed: {call}")
            waited = call.end - max([call.begin, *self._before(call)])
            if call.begin and call.what != "came":
                longest = self.tally.counts["ms for a call, at most"]
                self.tally.counts["ms for a call, at most"] = max(longest, int(1000 * waited))
                if waited > PATIENCE:
                    self._wrong.append(f"took {waited:.1f} s: {call}")
        return calls

    def _before(self, call: Call) -> list[float]:
        return [kill.when for kill in self._kills if kill.when < call.end]

    def _check_lost(self, d: DDict, calls: Sequence[Call], homes: dict[str, str]) -> None:
        (kill,) = self._kills
        for call in calls:
            if call.key == "-":
                continue
            gone = homes[call.key] == kill.worker and call.end > kill.when
            if call.what == "lost" and not gone:
                self._wrong.append(f"lost, though its worker is alive: {call}")
            if call.what not in ("lost", "adding") and gone and call.begin > kill.when:
                self._wrong.append(f"not lost, though its worker is dead: {call}")
        went_on = {c.key for c in calls if c.begin > kill.when and c.what in ("put", "read")}
        for key in all_keys():
            if homes[key] == kill.worker:
                for use in (lambda key=key: d.get(key), lambda key=key: d.put_many({key: 1})):
                    with contextlib.suppress(ServiceLost):
                        self._wrong.append(f"{key} gave {use()!r} afterwards")
            elif key not in went_on:  # on a busy machine nobody may have come to it
                try:
                    d.put_many({key: d.get(key)})
                except ServiceLost as error:
                    self._wrong.append(f"{key} is lost, though its worker is alive: {error}")

    def _check_kept(self, d: DDict, calls: Sequence[Call]) -> None:
        last: dict[str, int] = defaultdict(int)
        added: dict[str, list[int]] = defaultdict(list)
        doubt: dict[str, int] = defaultdict(int)
        for call in calls:
            # Of whoever was killed, a call may have been under way.
            doubt[call.key] += {"adding": 1, "added": -1}.get(call.what, 0)
            if call.what == "put":
                last[call.key] = max(last[call.key], call.number)
            elif call.what == "added":
                added[call.key].append(call.number)
        for key, number in last.items():
            found = d.get(key, (0, 0))[0]
            if found < number:
                self._wrong.append(f"{key} has {found}, though {number} was acknowledged")
        self.tally.counts["in doubt"] += sum(doubt.values())
        for key, numbers in added.items():
            if len(set(numbers)) < len(numbers):
                self._wrong.append(f"{key} gave the same number twice")
            found = d.get(key, 0)
            if not len(numbers) <= found <= len(numbers) + doubt[key]:
                self._wrong.append(
                    f"{key} has {found}, though {len(numbers)} were acknowledged and "
                    f"{doubt[key]} are in doubt"
                )

    def _check_order(self, calls: Sequence[Call]) -> None:
        """Find reads that returned a value older than one that was read before."""
        by_key: dict[str, list[tuple[float, float, int, Call]]] = defaultdict(list)
        for call in calls:
            if call.what in ("put", "read"):
                by_key[call.key].append((call.begin, call.end, call.number, call))
            elif call.what == "added":
                by_key[call.key].append((call.begin, call.end, call.number + 1, call))
        for seen in by_key.values():
            ended = sorted(seen, key=lambda each: each[1])
            newest, position = (-1, ended[0][3]), 0
            for begin, _, number, call in sorted(seen, key=lambda each: each[0]):
                while ended[position][1] < begin:
                    newest = max(newest, (ended[position][2], ended[position][3]))
                    position += 1
                if number < newest[0]:
                    self._wrong.append(f"older than before: {call} after {newest[1]}")
                    break


def _flat(use: tuple[Callable[..., None], tuple[Any, ...]]) -> tuple[Any, ...]:
    return use[0], *use[1]


def _members(uid: str, dask_scheduler: Any) -> list[list[str]]:
    """Return, on the scheduler, the workers of each shard."""
    found = dask_scheduler.plugins["daskbatch-shared"]._find(uid)
    return [[each.worker for each in layout.replicas] for layout in found.layouts]


def run_many(numbers: Sequence[int], replicas: int, directory: Path, told: Any = None) -> Tally:
    """Make some runs one after another on one Batch, and then close the Batch."""
    tally = Tally()
    faulty = FaultyBatch(WORKERS)
    try:
        for number in numbers:
            found = Run(faulty, number, replicas, directory / f"{replicas}-{number}")()
            for what in [what for what in found.counts if what.endswith("at most")]:
                longest = max(tally.counts[what], found.counts.pop(what))
                tally.counts[what] = longest
            tally.add(found)
            if told is not None:
                told(f"run {number}, replicas={replicas}: {found}")
                for each in found.violations:
                    told(each)
    finally:
        tally.violations += [f"after {numbers}: {each}" for each in faulty.close()]
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="how many, of each kind")
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument("--replicas", type=int, help="1 or 2, by default both")
    parser.add_argument("--share", type=int, default=5, help="how many runs share a Batch")
    given = parser.parse_args()
    violations = 0
    for replicas in [given.replicas] if given.replicas else [2, 1]:
        tally = Tally()
        end = given.first + given.runs
        for start in range(given.first, end, given.share):
            numbers = range(start, min(end, start + given.share))
            faulthandler.dump_traceback_later(len(numbers) * LONGEST + 120, exit=True)
            with tempfile.TemporaryDirectory(prefix="shared-faults-") as directory:
                found = run_many(numbers, replicas, Path(directory), _tell)
            for what in [what for what in found.counts if what.endswith("at most")]:
                tally.counts[what] = max(tally.counts[what], found.counts.pop(what))
            tally.add(found)
        _tell(f"replicas={replicas}: {tally}")
        violations += len(tally.violations)
    return bool(violations)


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    # Imported, so that the workers import it too, and the functions need not be sent.
    from faults import shared_harness as shared_faults

    sys.exit(shared_faults.main())
