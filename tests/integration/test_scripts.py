"""What a script defines works in tasks by value and by name, and returns as itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daskbatch import Batch

HERE = Path(__file__).parent


def run(cluster: str, *arguments: str, stdin: str = "", cwd: Path | None = None) -> list[str]:
    """Run Python as a client of a cluster; return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=cwd,
        env={**os.environ, "DASKBATCH_CLUSTER": cluster},
    )
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def cluster(batch: Batch) -> str:
    """The address of a cluster whose workers run tasks of many scripts."""
    return str(batch.client.scheduler_info()["address"])


DEFINITIONS = (HERE.parent / "support" / "definitions.py").read_text()


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_definitions_work_and_return_as_themselves(
    cluster: str, tmp_path: Path, isolation: str
) -> None:
    script = tmp_path / "a script ü.py"
    script.write_text(DEFINITIONS)
    assert run(cluster, str(script), isolation) == ["different: []", "not the same: []"]


SMALL = """
import pickle
from daskbatch import Batch

class Record:
    version = {version}

def save(record):
    import __main__
    return pickle.dumps(record), type(record) is Record, __main__.Record is Record, Record.version

with Batch() as batch:
    task = batch.function(save, Record())
    task.run()
    data, *rest = task.get()
    print(type(pickle.loads(data)) is Record, *rest)
"""


def test_in_each_kind_of_program_and_in_versions_of_one(cluster: str, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(SMALL.format(version=4))
    script = tmp_path / "script.py"
    script.write_text(SMALL.format(version=5))
    by_path = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    found = [
        *run(cluster, "-", stdin=SMALL.format(version=1)),
        *run(cluster, "-c", SMALL.format(version=2)),
        *run(cluster, "-m", "package", cwd=tmp_path),
        *run(cluster, str(script)),
        *run(cluster, "-c", by_path),
    ]
    assert found == [f"True True True {version}" for version in ("1", "2", "4", "5", "5")]


STATE = """
from daskbatch import Batch
threshold = 0

class Model:
    used = 0
    def fit(self): return threshold, self.used

class Base:
    version = 1

class Derived(Base):
    version = 1

def run(model): return model.fit(), model

def onward(pair): return pair[1].fit(), pair[1]

def override():
    Base.version = 2
    return Derived.version

with Batch() as batch:
    got = []
    for threshold in 1, 2, 3:
        task = batch.function(run, Model())
        task.start()
        got.append(task.get()[0])
        Model.used += 1
    print(got, Model.used, Model.fit.__globals__ is globals())
    # The class is as it is when the task starts, also where an old copy of it arrives.
    first = batch.function(run, Model())
    first.run()
    Model.used = 9
    second = batch.function(lambda pair: (Model.used, pair[1].used), first)
    second.run()
    print(second.get(), first.get()[1].used)
    overriding = batch.function(override)
    overriding.run()
    print(overriding.get(), Base.version)
    # As in a notebook.
    old = Model()
    class Model:
        used = "new"
    both = batch.function(lambda old: (old.used, Model.used, isinstance(old, Model)), old)
    both.run()
    print(both.get())
"""


def test_a_class_keeps_its_state(cluster: str) -> None:
    assert run(cluster, "-c", STATE) == [
        "[(1, 0), (2, 1), (3, 2)] 3 True",
        "(9, 9) 9",
        "1 1",
        "(9, 'new', False)",
    ]


BY_NAME = """
import concurrent.futures, enum, multiprocessing, os, pickle, sys
from daskbatch import Batch

class Level(enum.Enum):
    LOW = 1

class Record:
    def __init__(self, level): self.level = level

def square(x): return x * x

value = None

def set_value(x):
    global value
    value = x

def get_value(_): return value

def load(path):
    with open(path, "rb") as file:
        return pickle.load(file)

def pool(method):
    context = multiprocessing.get_context(method)
    with context.Pool(1, set_value, (7,)) as workers:
        return workers.map(square, [1, 2]), workers.map(get_value, [0])

def queue():
    queue = multiprocessing.get_context("fork").SimpleQueue()
    queue.put(Record(Level.LOW))
    return queue.get().level is Level.LOW

def executor():
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return type(pool.submit(Record, Level.LOW).result()) is Record

path = sys.argv[1]
with open(path, "wb") as file:
    pickle.dump(Record(Level.LOW), file)
with Batch() as batch:
    calls = [(load, path), (pool, "fork"), (pool, "spawn"), (queue,), (executor,)]
    factory = batch.options(isolation=sys.argv[2])
    tasks = [factory.function(*call) for call in calls]
    batch.compile(tasks).run()
    loaded, *rest = [task.get() for task in tasks]
    print(type(loaded) is Record, loaded.level is Level.LOW, *rest)
"""


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_what_is_pickled_by_name_in_a_task_is_found(
    cluster: str, tmp_path: Path, isolation: str
) -> None:
    found = run(cluster, "-c", BY_NAME, str(tmp_path / "a record ü"), isolation)
    assert found == ["True True ([1, 4], [7]) ([1, 4], [7]) True True"]


SHARED = """
from daskbatch import Batch
import enum

class Mode(enum.Flag):
    A = 1
    B = 2
    BOTH = A | B

class Key:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return type(other) is Key and other.n == self.n
    def __hash__(self): return self.n

def use(values, results):
    results.put((values[Key(1)] is Mode.BOTH, values["key"].n))
    return values[Key(1)]

with Batch() as batch:
    values, results = batch.ddict(), batch.queue()
    values[Key(1)] = Mode.BOTH
    values["key"] = Key(5)
    task = batch.function(use, values, results)
    task.run()
    print(task.get() is Mode.BOTH, results.get(), values[Key(1)] is Mode.BOTH)
    print(type(values["key"]) is Key, list(values) != [])
"""


def test_values_of_dictionaries_and_queues_are_the_script_s(cluster: str) -> None:
    assert run(cluster, "-c", SHARED) == ["True (True, 5) True", "True True"]


SETTINGS = """
import sys, warnings
from daskbatch import Batch

class Own(Warning): pass

warnings.simplefilter("error", BytesWarning)
warnings.simplefilter("ignore", Own)
sys.setrecursionlimit(2345)

def look():
    filters = [(f[0], f[2].__name__) for f in warnings.filters if f[2].__name__ != "Own"]
    return (
        len(str(10 ** 5000)), sys.flags.utf8_mode, sys.warnoptions, sys.argv,
        sys.getrecursionlimit(), filters[:3], sys.flags.optimize, sys._xoptions.get("own"),
    )

def seed(): return hash("text")

with Batch(num_workers=2) as batch:
    child = batch.options(isolation="process")
    tasks = [batch.function(look), child.function(look)]
    hashes = [each.function(seed) for each in (batch, child) for _ in range(4)]
    batch.compile([*tasks, *hashes]).run()
    here = look()
    print([task.get() == here or (task.get(), here) for task in tasks])
    print(len({task.get() for task in hashes}), hashes[0].get() == hash("text"))
"""


def test_workers_and_children_have_the_settings_of_the_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "settings ü.py"
    script.write_text(SETTINGS)
    options = ["-X", "utf8", "-X", "int_max_str_digits=0", "-X", "own=1", "-O"]
    done = subprocess.run(
        [sys.executable, *options, "-W", "error::FutureWarning", str(script), "a b", "ü"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=200,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    assert done.stdout.splitlines() == ["[True, True]", "1 True"], done.stderr


LATER = """
import os, sys
from daskbatch import Batch

def look(): return os.environ.get("LATE ü"), "HOME" in os.environ

with Batch(num_workers=1) as batch:
    def run(target, **options):
        task = batch.options(**options).function(target)
        task.run()
        return task.get()
    print(run(look), run(look, isolation="process"))
    os.environ["LATE ü"] = "é"
    home = os.environ.pop("HOME")
    sys.path.insert(0, sys.argv[1])
    import later
    print(run(look), run(look, isolation="process"), run(later.get), run(later.Type.get))
    print(run(later.get, isolation="process"))
    del os.environ["LATE ü"]
    os.environ["HOME"] = home
    print(run(look), run(look, isolation="process"))
    module = type(sys)("nowhere")
    sys.modules["nowhere"] = module
    exec("def get(): return 1", vars(module))
    try:
        run(module.get)
    except Exception as error:
        print("register_pickle_by_value(nowhere)" in str(error))
"""


def test_later_changes_of_the_path_and_the_environment_are_seen(tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text(
        "def get(): return 'later'\nclass Type:\n    @staticmethod\n    def get(): return 'type'\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", LATER, str(tmp_path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=200,
    )
    assert done.stdout.splitlines() == [
        "(None, True) (None, True)",
        "('é', False) ('é', False) later type",
        "later",
        "(None, True) (None, True)",
        "True",
    ], done.stderr


AT_IMPORT = """
from daskbatch import Batch, BatchPoolExecutor

def double(x): return 2 * x

if {executor}:
    with BatchPoolExecutor(max_workers=1) as executor:
        numbers = executor.submit(pow, 2, 3).result(), *executor.map(abs, [-1, -2])
        print(*numbers)
        for give in (
            lambda: executor.submit(double, 1).result(),
            lambda: list(executor.map(double, [1])),
        ):
            try:
                give()
            except Exception as error:
                print(type(error).__name__, "'starts' makes a Batch" in str(error))
else:
    with Batch(num_workers=1) as batch:
        task = batch.function(double, 1)
        task.run()
        try:
            task.get()
        except Exception as error:
            print(type(error).__name__, "'starts' makes a Batch" in str(error))
"""


@pytest.mark.parametrize("executor", [True, False])
def test_a_module_that_makes_a_batch_is_refused_by_workers(tmp_path: Path, executor: bool) -> None:
    (tmp_path / "starts.py").write_text(AT_IMPORT.format(executor=executor))
    done = subprocess.run(
        [sys.executable, "-c", "import starts"],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
    )
    refused = "LoadingError True"
    wanted = ["8 1 2", refused, refused] if executor else [refused]
    assert done.stdout.splitlines() == wanted, done.stderr
