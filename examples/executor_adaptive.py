"""Adaptive sampling: the next points are chosen while others are computed."""

import adaptive

from daskbatch import BatchPoolExecutor

WORKERS = 2


def peak(x, width=0.01):
    return x + width**2 / (width**2 + (x - 0.3) ** 2)


learner = adaptive.Learner1D(peak, bounds=(-1, 1))
with BatchPoolExecutor(max_workers=WORKERS) as pool:
    # Adaptive counts the cores of the executors that it knows; others need `ntasks`.
    adaptive.BlockingRunner(learner, npoints_goal=60, executor=pool, ntasks=WORKERS)

at_peak = sum(abs(x - 0.3) < 0.1 for x in learner.data)
print("points:", learner.npoints >= 60, "most of them at the peak:", at_peak > 20)
