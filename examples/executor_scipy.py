"""Runs SciPy's differential evolution, each generation in parallel: `workers=` accepts a `map`."""

import numpy as np
from scipy.optimize import differential_evolution, rosen

from daskbatch import BatchPoolExecutor

BOUNDS = [(0, 2)] * 2


def minimize(workers):
    return differential_evolution(rosen, BOUNDS, workers=workers, updating="deferred", rng=1)


with BatchPoolExecutor(max_workers=2) as pool:
    parallel = minimize(pool.map)

print("least at", np.round(parallel.x, 3))
print("as without workers:", np.array_equal(parallel.x, minimize(1).x))
