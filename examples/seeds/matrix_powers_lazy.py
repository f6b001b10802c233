"""The powers of a matrix, by a template: its calls run in the background, in batches."""

# Generate the powers of a matrix and write them to disk
from daskbatch import Batch
from pathlib import Path
from some_math_functions import gpu_matmul

import numpy as np

# A base directory, and files in it, will be used for communication of results
batch = Batch()
base_dir = Path("/some/path/to/base_dir")

a = np.linspace(0, 1, 100)
m = np.vander(a)
m = m / m.sum(axis=1, keepdims=True)  # each row adds up to 1, so that the powers stay in [0, 1]

# Import a function to lazily run gpu_matful tasks in parallel. Notice that the
# "ptd" in the file name refers to "parameterized task descriptor", since the yaml
# file describes a collection of tasks that are parameterized by the arguments to
# the returned function, gpu_matmul_func.
get_file = lambda base_dir, i, j: Path(base_dir) / Path(f"file_{i + j}")
gpu_matmul_lazy = batch.import_func("gpu_matmul_ptd.yml", gpu_matmul, base_dir, get_file)

results = []
for i in range(1000):
    val = gpu_matmul_lazy(m, i)
    results.append(val)

# If there was an exception while running the task, it will be raised when we call val.get()
print("power  largest element")
for i, val in enumerate(results):
    try:
        largest = val.get()
        if i + 2 in (2, 10, 100, 1000):
            print(f"{i + 2:5}  {largest:.6f}")
    except Exception as e:
        print(f"gpu_matmul failed with the following exception: {e}")

batch.close()
batch.join()
