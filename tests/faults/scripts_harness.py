"""Runs random scripts of definitions in tasks, and compares that with one process.

``PYTHONPATH=tests python -m faults.scripts_harness --seeds 0-9999`` does so for many seeds.
"""

from __future__ import annotations

import argparse
import traceback

from support.scripts import TaskProcess, check, make_script


def main() -> None:
    """Check the scripts of a range of seeds; print those that differ, and their number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-999", help="first and last seed")
    first, last = map(int, parser.parse_args().seeds.split("-"))
    elsewhere, failed = TaskProcess(), 0
    for seed in range(first, last + 1):
        try:
            check(seed, elsewhere)
        except BaseException:
            failed += 1
            print(f"seed {seed}:", make_script(seed).text(), traceback.format_exc(), sep="\n")
            elsewhere.end()
            elsewhere = TaskProcess()
    elsewhere.end()
    print(f"{last - first + 1} scripts, {failed} failed")


if __name__ == "__main__":
    main()
