"""Computes a graph of Dask's collections by an executor: `scheduler=` accepts an executor."""

import dask
import dask.array as da

from daskbatch import BatchPoolExecutor


@dask.delayed
def square(x):
    return x * x


total = dask.delayed(sum)([square(n) for n in range(10)])
table = da.arange(1000, chunks=100)

with BatchPoolExecutor(max_workers=2) as pool:
    print("sum of squares:", *dask.compute(total, scheduler=pool))
    with dask.config.set(scheduler=pool):
        print("mean of an array:", table.mean().compute())
