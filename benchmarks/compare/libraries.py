"""What each library does to run the programs: a class a library.

Each class is used as a person would use the library who knows it well. A method that a class does
not have is a program that the library cannot run.
"""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

from programs import Call, Result

WORKERS = 2


def run_true(_: int) -> int:
    """Run the shortest executable, as libraries without executables do."""
    return subprocess.run(["true"], check=True).returncode


class ExecutorLibrary:
    """A library whose executor takes no futures as arguments: the program's order is kept by hand.

    The results come back to this process, and go out again with the calls that need them.
    """

    package = ""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def graph(self, calls: list[Call]) -> Any:
        """Submit each call as soon as all that it needs is there; return the last result."""
        missing = [sum(isinstance(each, Result) for each in call.arguments) for call in calls]
        dependents: list[list[int]] = [[] for _ in calls]
        for number, call in enumerate(calls):
            for each in call.arguments:
                if isinstance(each, Result):
                    dependents[each.index].append(number)
        results: dict[int, Any] = {}
        running: dict[Future[Any], int] = {}

        def submit(number: int) -> None:
            function, arguments = calls[number]
            values = [
                results[each.index] if isinstance(each, Result) else each for each in arguments
            ]
            running[self.executor.submit(function, *values)] = number

        for number, count in enumerate(missing):
            if not count:
                submit(number)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                results[number] = future.result()
                for dependent in dependents[number]:
                    missing[dependent] -= 1
                    if not missing[dependent]:
                        submit(dependent)
        return results[len(calls) - 1]

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.executor.map(function, items))

    def processes(self, count: int) -> int:
        return sum(self.executor.map(run_true, range(count)))

    def single(self, count: int) -> int:
        return sum(self.executor.submit(pow, 1, 2).result() for _ in range(count))

    def close(self) -> None:
        self.executor.shutdown()


class Pool(ExecutorLibrary):
    """`concurrent.futures.ProcessPoolExecutor`."""

    package = "concurrent.futures"

    def __init__(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        super().__init__(ProcessPoolExecutor(WORKERS))


class Loky(ExecutorLibrary):
    """loky, the executor of joblib."""

    package = "loky"

    def __init__(self) -> None:
        from loky import ProcessPoolExecutor

        super().__init__(ProcessPoolExecutor(WORKERS))


class Executorlib(ExecutorLibrary):
    """executorlib on this machine, with workers that stay (block allocation)."""

    package = "executorlib"

    def __init__(self) -> None:
        from executorlib import SingleNodeExecutor

        super().__init__(SingleNodeExecutor(max_workers=WORKERS, block_allocation=True))


class Daskbatch:
    """daskbatch."""

    package = "daskbatch"

    def __init__(self) -> None:
        from daskbatch import Batch, as_executor

        self.batch = Batch(num_workers=WORKERS)
        self.executor = as_executor(self.batch)

    def graph(self, calls: list[Call]) -> Any:
        tasks: list[Any] = []
        for function, arguments in calls:
            values = [tasks[each.index] if isinstance(each, Result) else each for each in arguments]
            tasks.append(self.batch.function(function, *values))
        program = self.batch.compile(tasks)
        program.run(check=True)
        return tasks[-1].get()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.executor.map(function, items))

    def processes(self, count: int) -> int:
        program = self.batch.compile([self.batch.process("true") for _ in range(count)])
        program.run(check=True)
        return sum(program.get())

    def single(self, count: int) -> int:
        return sum(self.executor.submit(pow, 1, 2).result() for _ in range(count))

    def dictionary(self, count: int) -> int:
        shared = self.batch.ddict()
        for number in range(count):
            shared[number] = number
        return sum(shared[number] for number in range(count))

    def queue(self, count: int) -> int:
        shared = self.batch.queue()
        for number in range(count):
            shared.put(number)
        return sum(shared.get() for _ in range(count))

    def close(self) -> None:
        self.executor.shutdown()
        self.batch.close()
        self.batch.join()


class _Values:
    """The actor that a user of plain Dask writes to share values."""

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}

    def put(self, key: Any, value: Any) -> None:
        self.values[key] = value

    def get(self, key: Any) -> Any:
        return self.values[key]


class Dask:
    """dask.distributed."""

    package = "distributed"

    def __init__(self) -> None:
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None)
        self.client = Client(self.cluster)

    def graph(self, calls: list[Call]) -> Any:
        import dask
        from dask.delayed import delayed

        nodes: list[Any] = []
        for function, arguments in calls:
            values = [nodes[each.index] if isinstance(each, Result) else each for each in arguments]
            nodes.append(delayed(function, pure=False)(*values))
        with dask.config.set({"optimization.fuse.active": False}):
            return self.client.compute(nodes[-1]).result()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return self.client.gather(self.client.map(function, list(items), pure=False))

    def processes(self, count: int) -> int:
        return sum(self.map(run_true, range(count)))

    def single(self, count: int) -> int:
        return sum(self.client.submit(pow, 1, 2, pure=False).result() for _ in range(count))

    def dictionary(self, count: int) -> int:
        actor = self.client.submit(_Values, actor=True).result()
        for number in range(count):
            actor.put(number, number).result()
        return sum(actor.get(number).result() for number in range(count))

    def queue(self, count: int) -> int:
        from distributed import Queue

        shared = Queue(client=self.client)
        for number in range(count):
            shared.put(number)
        return sum(shared.get() for _ in range(count))

    def close(self) -> None:
        self.client.close()
        self.cluster.close()


class Ray:
    """Ray."""

    package = "ray"

    def __init__(self) -> None:
        import ray

        self.ray = ray
        ray.init(
            num_cpus=WORKERS, include_dashboard=False, logging_level="ERROR", log_to_driver=False
        )

    def graph(self, calls: list[Call]) -> Any:
        remote: dict[Any, Any] = {}
        references: list[Any] = []
        for function, arguments in calls:
            if function not in remote:
                remote[function] = self.ray.remote(function)
            values = [
                references[each.index] if isinstance(each, Result) else each for each in arguments
            ]
            references.append(remote[function].remote(*values))
        return self.ray.get(references[-1])

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        remote = self.ray.remote(function)
        return self.ray.get([remote.remote(item) for item in items])

    def processes(self, count: int) -> int:
        return sum(self.map(run_true, range(count)))

    def single(self, count: int) -> int:
        remote = self.ray.remote(lambda a, b: a**b)
        return sum(self.ray.get(remote.remote(1, 2)) for _ in range(count))

    def dictionary(self, count: int) -> int:
        actor = self.ray.remote(_Values).remote()
        for number in range(count):
            self.ray.get(actor.put.remote(number, number))
        return sum(self.ray.get(actor.get.remote(number)) for number in range(count))

    def close(self) -> None:
        self.ray.shutdown()


class Parsl:
    """Parsl with its HighThroughputExecutor on this machine.

    Its connections are not encrypted, as those of the other libraries are not on one machine.
    Values go through its three processes by pickle: Parsl has no memory that processes share.
    """

    package = "parsl"

    def __init__(self) -> None:
        import parsl
        from parsl.config import Config
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider

        self.parsl = parsl
        self.directory = tempfile.TemporaryDirectory()
        executor = HighThroughputExecutor(
            label="workers",
            address="127.0.0.1",
            max_workers_per_node=WORKERS,
            encrypted=False,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        parsl.load(
            Config(executors=[executor], run_dir=self.directory.name, initialize_logging=False)
        )

    def graph(self, calls: list[Call]) -> Any:
        apps: dict[Any, Any] = {}
        futures: list[Any] = []
        for function, arguments in calls:
            if function not in apps:
                apps[function] = self.parsl.python_app(function)
            values = [
                futures[each.index] if isinstance(each, Result) else each for each in arguments
            ]
            futures.append(apps[function](*values))
        return futures[-1].result()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        app = self.parsl.python_app(function)
        return [future.result() for future in [app(item) for item in items]]

    def processes(self, count: int) -> int:
        return sum(self.map(run_true, range(count)))

    def single(self, count: int) -> int:
        app = self.parsl.python_app(pow)
        return sum(app(1, 2).result() for _ in range(count))

    def close(self) -> None:
        self.parsl.dfk().cleanup()
        self.parsl.clear()
        self.directory.cleanup()


LIBRARIES: dict[str, Any] = {
    "daskbatch": Daskbatch,
    "Dask": Dask,
    "ProcessPoolExecutor": Pool,
    "loky": Loky,
    "Ray": Ray,
    "Parsl": Parsl,
    "executorlib": Executorlib,
}


def installed(name: str) -> bool:
    """Return whether this Python has a library."""
    return importlib.util.find_spec(LIBRARIES[name].package.partition(".")[0]) is not None
