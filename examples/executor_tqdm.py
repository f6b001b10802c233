"""Shows progress bars over results: in the order of the calls, and in the order of completion."""

import random
import time
from concurrent.futures import as_completed

from tqdm import tqdm

from daskbatch import BatchPoolExecutor


def work(n):
    time.sleep(random.random() / 100)
    return n


with BatchPoolExecutor(max_workers=2) as pool:
    total = sum(tqdm(pool.map(work, range(100)), total=100, desc="in order"))
    futures = [pool.submit(work, n) for n in range(100)]
    bar = tqdm(as_completed(futures), total=len(futures), desc="as they come")
    print("the same sum:", total == sum(future.result() for future in bar))
