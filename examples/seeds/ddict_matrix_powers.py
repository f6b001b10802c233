"""The powers of a matrix, each written to a distributed dictionary instead of a file.

Otherwise the program is that of `matrix_powers.py`. The order of the tasks is inferred from the
keys that they read and write: it is a chain.
"""

import numpy as np

from daskbatch import Batch, DDict


def gpu_matmul(original_matrix: np.ndarray, ddict: DDict, i: int) -> float:
    # read the current matrix stored in the Distributed Dictionary at key=i
    current_matrix = ddict[i]

    # actual matrix multiplication happens here
    next_matrix = original_matrix @ current_matrix

    # write the next power of the matrix to the Distributed Dictionary at key=i+1
    ddict[i + 1] = next_matrix
    return float(next_matrix.max())


# The Distributed Dictionary service will be used for communication of results
batch = Batch()
ddict = batch.ddict()


# Knowledge of reads and writes to the Distributed Dictionary will also be used by
# the Batch service to determine data dependencies and how to parallelize tasks
def get_read(i):
    return batch.read(ddict, i)


def get_write(i):
    return batch.write(ddict, i + 1)


a = np.linspace(0, 1, 100)
m = np.vander(a)
m = m / m.sum(axis=1, keepdims=True)  # each row adds up to 1, so that the powers stay in [0, 1]
ddict[0] = np.eye(100, dtype=m.dtype)


# batch.function will create a task with specified arguments and reads/writes to the
# distributed dictionary
def get_task(i):
    return batch.function(gpu_matmul, m, ddict, i, reads=[get_read(i)], writes=[get_write(i)])


# Package up the list of tasks into a single compiled task and create the DAG (done by
# batch.compile), and then submit the compiled task to the Batch service
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
        if i + 1 in (1, 10, 100, 1000):
            print(f"{i + 1:5}  {largest:.6f}")
    except Exception as e:
        print(f"gpu_matmul failed with the following exception: {e}")

print("powers in the dictionary:", len(ddict))
print("the last one is right:", np.allclose(ddict[1000], np.linalg.matrix_power(m, 1000)))

batch.close()
batch.join()
