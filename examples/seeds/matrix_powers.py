"""The powers of a matrix, each written to disk by a task that reads the one before.

The order of the tasks is inferred from what they read and write: it is a chain.
"""

# Generate the powers of a matrix and write them to disk
from daskbatch import Batch
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

a = np.linspace(0, 1, 100)
m = np.vander(a)
m = m / m.sum(axis=1, keepdims=True)  # each row adds up to 1, so that the powers stay in [0, 1]

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
print("power  largest element")
for i, task in enumerate(serial_task_list):
    try:
        largest = task.result.get()
        if i + 2 in (2, 10, 100, 1000):
            print(f"{i + 2:5}  {largest:.6f}")
        # print(f"stdout={task.stdout.get()}")
        # print(f"stderr={task.stderr.get()}")
    except Exception as e:
        print(f"gpu_matmul failed with the following exception: {e}")

batch.close()
batch.join()
