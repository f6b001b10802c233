"""The examples of the document that daskbatch was designed from run unchanged.

Only the import line differs: it named another package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.paths import EXAMPLES as ALL_EXAMPLES

from daskbatch import Batch, CommunicationDomain, CommunicationObject

EXAMPLES = ALL_EXAMPLES / "seeds"

THEIR_IMPORT = "from dragon.workflows.batch import Batch\n"
OUR_IMPORT = "from daskbatch import Batch\n"

MATRIX_POWERS = """\
# Generate the powers of a matrix and write them to disk
from dragon.workflows.batch import Batch
from pathlib import Path
from some_math_functions import gpu_matmul

import numpy as np

# A base directory, and files in it, will be used for communication of results
batch = Batch(background_batching=False)
base_dir = Path("/some/path/to/base_dir")

# Knowledge of reads and writes to files will also be used by the Batch service
# to determine data dependencies and how to parallelize tasks
get_read = lambda i: batch.read(base_dir, Path(f"file_{i}"))
get_write = lambda i: batch.write(base_dir, Path(f"file_{i+1}"))

a = np.array([j for j in range(100)])
m = np.vander(a)

# batch.function will create a task with specified arguments and reads/writes to the file system
get_task = lambda i: batch.function(gpu_matmul, m, base_dir, i, reads=[get_read(i)], writes=[get_write(i)], timeout=30)

# Package up the list of tasks into a single compiled task and create the DAG (done by batch.compile),
# and then submit the compiled task to the Batch service (done by matrix_powers_task.start)
serial_task_list = [get_task(i) for i in range(1000)]
matrix_powers_task = batch.compile(serial_task_list)
matrix_powers_task.start()

# Wait for the compiled task to complete
matrix_powers_task.wait()

# If there was an exception while running the task, it will be raised when get() is called
for task in serial_task_list:
    try:
        print(f"result={task.result.get()}")
        # print(f"stdout={task.stdout.get()}")
        # print(f"stderr={task.stderr.get()}")
    except Exception as e:
        print(f"gpu_matmul failed with the following exception: {e}")

batch.close()
batch.join()
"""  # noqa: E501

MATRIX_POWERS_PTD = """\
########################### import-time and call-time arguments specified here ###########################

# these arguments are passed to import_func
import_args:
  # function to run
  - gpu_matmul
  # base directory of files that will be accessed
  - base_dir
  # function to select file
  - get_file

# import_kwargs:

# these arguments are passed to gpu_matmul_lazy
args:
  - matrix
  - i

# kwargs:

######### definition of task executables, resources, dependencies, etc. (in terms of args above) #########

# type of task (should be function, process, or job)
type: function

executables:
  # here we "plug in" the names of the function and its arguments (specified above)
  - target: gpu_matmul
    args:
      - matrix
      - i

reads:
  - files:
    - get_file:
      - base_dir
      - i
      - 0

writes:
  - files:
    - get_file:
      - base_dir
      - i
      - 1

name: gpu_matmul_task

timeout:
  day: 0
  hour: 0
  min: 0
  sec: 30
"""  # noqa: E501

#: The document misspells the name of the imported function where it makes it.
MATRIX_POWERS_LAZY = """\
# Generate the powers of a matrix and write them to disk
from dragon.workflows.batch import Batch
from pathlib import Path
from some_math_functions import gpu_matmul

import numpy as np

# A base directory, and files in it, will be used for communication of results
batch = Batch()
base_dir = Path("/some/path/to/base_dir")

a = np.array([j for j in range(100)])
m = np.vander(a)

# Import a function to lazily run gpu_matful tasks in parallel. Notice that the
# "ptd" in the file name refers to "parameterized task descriptor", since the yaml
# file describes a collection of tasks that are parameterized by the arguments to
# the returned function, gpu_matmul_func.
get_file = lambda base_dir, i, j: Path(base_dir) / Path(f"file_{i + j}")
gpu_matul_lazy = batch.import_func("gpu_matmul_ptd.yml", gpu_matmul, base_dir, get_file)

results = []
for i in range(1000):
    val = gpu_matmul_lazy(m, i)
    results.append(val)

# If there was an exception while running the task, it will be raised when we call val.get()
for val in results:
    try:
        print(f"{val.get()=}")
    except Exception as e:
        print(f"gpu_matmul failed with the following exception: {e}")

batch.close()
batch.join()
"""

THEIR_NAME = "gpu_matul_lazy"
OUR_NAME = "gpu_matmul_lazy"

ARGUMENT_PASSING = """\
def foo():
    return "Hi-diddly-ho!!!"

def bar(hello: str):
    print(hello, flush=True)

batch = Batch()

task_foo = batch.function(foo)
task_bar = batch.function(bar, task_foo.result)

batch.compile([task_foo, task_bar]).run()
# prints: "Hi-diddly-ho!!!"
print(f"{task_bar.stdout.get()}", flush=True)

batch.close()
batch.join()
"""


def run_script(directory: Path, text: str) -> str:
    """Run a program as a script, with a temporary directory for it alone; return its output."""
    script = directory / "program.py"
    script.write_text(text, encoding="utf-8")
    temporary = directory / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=directory,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    # A thousand matrices: pytest would keep them for some runs.
    shutil.rmtree(temporary)
    return done.stdout


# -- whole programs -----------------------------------------------------------------------


def test_passing_arguments(tmp_path: Path) -> None:
    assert run_script(tmp_path, OUR_IMPORT + ARGUMENT_PASSING) == "Hi-diddly-ho!!!\n"


def powers(count: int) -> list[float]:
    matrix = power = np.vander(np.arange(100))
    largest = []
    for _ in range(count):
        power = matrix @ power
        largest.append(float(power.max()))
    return largest


def test_powers_of_a_matrix(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "some_math_functions.py", tmp_path)
    said = run_script(tmp_path, MATRIX_POWERS.replace(THEIR_IMPORT, OUR_IMPORT))
    assert said.splitlines() == [f"result={power}" for power in powers(1000)]


def test_powers_of_a_matrix_by_a_template(tmp_path: Path) -> None:
    for name in ("some_math_functions.py", "gpu_matmul_ptd.yml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    program = MATRIX_POWERS_LAZY.replace(THEIR_IMPORT, OUR_IMPORT).replace(THEIR_NAME, OUR_NAME)
    said = run_script(tmp_path, program)
    assert said.splitlines() == [f"val.get()={power}" for power in powers(1000)]


def test_the_template_is_the_documents() -> None:
    example = (EXAMPLES / "gpu_matmul_ptd.yml").read_text(encoding="utf-8")
    assert example == MATRIX_POWERS_PTD


#: The document's matrix is of integers, whose powers wrap around. In the examples the numbers mean
#: something, and some of them stand in a table at the end.
THEIR_MATRIX = """\
a = np.array([j for j in range(100)])
m = np.vander(a)
"""
OUR_MATRIX = """\
a = np.linspace(0, 1, 100)
m = np.vander(a)
m = m / m.sum(axis=1, keepdims=True)  # each row adds up to 1, so that the powers stay in [0, 1]
"""


def our_table(program: str, loop: str, numbered: str, value: str, printed: str) -> str:
    """Return a program in which a table replaces a line for each result."""
    shown = f"""\
        largest = {value}
        if i + 2 in (2, 10, 100, 1000):
            print(f"{{i + 2:5}}  {{largest:.6f}}")
"""
    heading = 'print("power  largest element")\n'
    assert loop in program
    assert printed in program
    return program.replace(loop, heading + numbered).replace(printed, shown)


def test_the_example_is_the_documents_but_for_heading_import_matrix_and_table() -> None:
    loops = {
        "matrix_powers.py": (
            MATRIX_POWERS,
            "for task in serial_task_list:\n",
            "for i, task in enumerate(serial_task_list):\n",
            "task.result.get()",
            '        print(f"result={task.result.get()}")\n',
        ),
        "matrix_powers_lazy.py": (
            MATRIX_POWERS_LAZY,
            "for val in results:\n",
            "for i, val in enumerate(results):\n",
            "val.get()",
            '        print(f"{val.get()=}")\n',
        ),
    }
    for name, (text, *changes) in loops.items():
        example = (EXAMPLES / name).read_text(encoding="utf-8")
        assert THEIR_IMPORT in text
        assert THEIR_MATRIX in text
        expected = text.replace(THEIR_IMPORT, OUR_IMPORT).replace(THEIR_NAME, OUR_NAME)
        expected = our_table(expected.replace(THEIR_MATRIX, OUR_MATRIX), *changes)
        heading, _, program = example.partition('"""\n\n')
        assert heading.startswith('"""')
        assert program == expected


# -- fragments ----------------------------------------------------------------------------


def add_to(base_dir: Path, i: int) -> int:
    number = int((base_dir / f"file_{i}").read_text()) + 1
    (base_dir / f"file_{i + 1}").write_text(str(number))
    return number


def test_arguments_in_a_tuple_and_accesses_in_lists(batch: Batch, tmp_path: Path) -> None:
    get_read = lambda i: batch.read(tmp_path, Path(f"file_{i}"))  # noqa: E731
    get_write = lambda i: batch.write(tmp_path, Path(f"file_{i + 1}"))  # noqa: E731
    get_task = lambda i: batch.function(  # noqa: E731
        add_to, (tmp_path, i), [get_read(i)], [get_write(i)]
    )
    (tmp_path / "file_0").write_text("7")
    tasks = [get_task(i) for i in range(50)]
    program = batch.compile(tasks)
    program.start()
    program.wait(timeout=60)
    assert [task.result.get() for task in tasks] == list(range(8, 58))
    assert (tmp_path / "file_50").read_text() == "57"


def pair(one: object, other: object) -> tuple[object, object]:
    return one, other


def test_arguments_in_a_tuple_are_arguments_where_no_accesses_follow(batch: Batch) -> None:
    task = batch.function(pair, (1, 2), [3])
    task.run(timeout=60)
    assert task.get() == ((1, 2), [3])


def write_text(path: Path, text: str) -> None:
    path.write_text(text)


def test_accesses_said_once_the_task_is_there(batch: Batch, tmp_path: Path) -> None:
    base_dir1, base_dir2 = tmp_path / "one", tmp_path / "two"
    for directory in (base_dir1, base_dir2):
        directory.mkdir()
    file_path1, file_path2 = Path("input.txt"), "output.txt"
    early = batch.function(write_text, base_dir1 / file_path1, "c\na\nb\n", name="early")
    early.write(base_dir1, file_path1)
    task = batch.process("sort", "-o", base_dir2 / file_path2, base_dir1 / file_path1)
    task.read(base_dir1, file_path1)
    task.write(base_dir2, file_path2)
    late = batch.function(Path.read_text, base_dir2 / file_path2, name="late")
    late.read(base_dir2, file_path2)
    program = batch.compile([early, task, late])
    program.run(timeout=60)
    assert late.get() == "a\nb\nc\n"
    assert "early" in program.explain(early, task)
    assert "input.txt" in program.explain(early, task)
    assert "output.txt" in program.explain(task, late)


def my_func(number: int) -> int:
    return number


@pytest.mark.parametrize("rar", [True, False])
def test_a_domain_of_ones_own(batch: Batch, rar: bool) -> None:
    ip_addr, port_1, port_2 = "10.0.0.7", 8080, 8081
    socket_domain = CommunicationDomain(rar=rar, raw=True, war=True, waw=True)
    socket_object = CommunicationObject(socket_domain, ip_addr)
    socket_read = batch.read(socket_object, port_1)
    socket_write = batch.write(socket_object, port_2)
    task = batch.function(my_func, 1, reads=[socket_read], writes=[socket_write])
    reads_the_same = batch.function(my_func, 2, reads=[socket_read])
    reads_what_it_writes = batch.function(my_func, 3, reads=[batch.read(socket_object, port_2)])
    program = batch.compile([task, reads_the_same, reads_what_it_writes])
    edges = {(edge.before, edge.after) for edge in program.graph.edges()}
    assert edges == ({(0, 1), (0, 2)} if rar else {(0, 2)})
    program.run(timeout=60)
    assert program.get() == [1, 2, 3]


def test_tasks_of_all_types_have_one_interface(batch: Batch) -> None:
    function = batch.function(print, "hello", flush=True)
    process = batch.process("echo", "hello")
    member = batch.function(print, "hello")
    for task in (function, process, batch.compile([member])):
        task.start()
        task.wait(timeout=60)
        assert task.stdout.get() == "hello"
        assert task.stderr.get() == ""
    assert function.result.get() is None
    assert process.result.get() == 0
