"""Waits for futures of a thread pool and of an executor on other processes together."""

from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from daskbatch import BatchPoolExecutor


def count_words(text):
    return len(text.split())


with ThreadPoolExecutor() as threads, BatchPoolExecutor(max_workers=2) as pool:
    # The threads read files, the processes count words.
    files = sorted(Path(__file__).parent.glob("executor_*.py"))
    reads = {threads.submit(path.read_text, encoding="utf-8"): path.name for path in files}
    counts = {}
    for read in as_completed(reads):
        counts[pool.submit(count_words, read.result())] = reads[read]
    words = {counts[count]: count.result() for count in as_completed(counts)}

print(len(words), "files have words:", all(words.values()))
