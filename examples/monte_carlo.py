"""A Monte Carlo estimate in parts, some of which fail, and one of which never ends.

The volume of a ball in six dimensions, by random points. `retries` lets a part that fails try
again, and `timeout` really stops one that hangs. A part that fails each time is left out: the
others have run, and the estimate is made from them. The table at the end has the attempts.
"""

import math
import time

import numpy as np

from daskbatch import Batch

DIMENSIONS, PARTS, POINTS = 6, 12, 200_000
FAILS_ONCE, HANGS_ONCE, FAILS_ALWAYS = 3, 5, 8


def estimate(part, attempts):
    """Return the volume by the points of one part."""
    attempt = attempts.fetch_add(part, 1)  # a count that all processes share
    if part == FAILS_ALWAYS or (part == FAILS_ONCE and attempt == 0):
        raise OSError("the license server does not answer")
    if part == HANGS_ONCE and attempt == 0:
        time.sleep(3600)
    points = np.random.default_rng(part).uniform(-1, 1, (POINTS, DIMENSIONS))
    inside = np.count_nonzero((points**2).sum(axis=1) <= 1)
    return 2**DIMENSIONS * inside / POINTS


def main():
    with Batch(num_workers=2) as batch:
        attempts = batch.ddict()
        careful = batch.options(retries=2, timeout=4, name="part")
        parts = [careful.function(estimate, part, attempts) for part in range(PARTS)]
        program = batch.compile(parts, name="volume")
        program.run()  # without check=True: it returns although a part has failed
        failed = {task: task.info.error for task in program.failures}
        print("part  attempts  state   volume")
        for number, task in enumerate(parts):
            found = failed[task] if task in failed else f"{task.get():.4f}"
            print(f"{number:4}  {task.info.attempts:8}  {task.state:6}  {found}")
        volumes = [task.get() for task in parts if task not in failed]
    error = np.std(volumes, ddof=1) / math.sqrt(len(volumes))
    print(f"volume by {len(volumes)} of {PARTS} parts: {np.mean(volumes):.3f} ± {error:.3f}")
    print(f"exactly: {math.pi**3 / 6:.3f}")


if __name__ == "__main__":
    main()
