"""Runs a scientific workflow that is described in the format of WfCommons, with its files.

`wfcommons_montage.json` is an instance of Montage, an astronomical mosaic: 97 tasks, and the files
that each reads and writes. The program makes a task of each entry. It passes on nothing but the
names of files; which tasks wait for which follows from them, and agrees with the `parents` that the
instance lists. Times and sizes are scaled down. Other instances: https://wfcommons.org/instances

Leaves `wfcommons_workflow.html`, a report, in the current directory.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

from daskbatch import Batch


def work(folder, inputs, outputs, seconds):
    """Read all inputs, use the CPU for a while, and write all outputs, in the given sizes."""
    end = time.thread_time() + seconds
    for name in inputs:
        assert Path(folder, name).read_bytes().endswith(b"end"), f"{name} is not complete"
    while time.thread_time() < end:
        pass
    for name, size in outputs.items():
        Path(folder, name).write_bytes(b" " * size + b"end")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).with_name("wfcommons_montage.json")
    parser.add_argument("instance", type=Path, nargs="?", default=default)
    parser.add_argument("--speed", type=float, default=10_000, help="how much faster than real")
    parser.add_argument("--shrink", type=float, default=1_000, help="how much smaller the files")
    given = parser.parse_args()
    workflow = json.loads(given.instance.read_text())["workflow"]
    entries = {each["id"]: each for each in workflow["specification"]["tasks"]}
    parents = {name: each["parents"] for name, each in entries.items()}
    # An order in which the tasks could run one after another: that of a sequential program.
    steps = [entries[name] for name in TopologicalSorter(parents).static_order()]
    sizes = {
        each["id"]: int(each["sizeInBytes"] / given.shrink)
        for each in workflow["specification"]["files"]
    }
    seconds = {each["id"]: each["runtimeInSeconds"] for each in workflow["execution"]["tasks"]}

    with tempfile.TemporaryDirectory() as folder, Batch(num_workers=2) as batch:
        made = {name for step in steps for name in step["outputFiles"]}
        work(folder, [], {name: size for name, size in sizes.items() if name not in made}, 0)
        tasks = {}
        for step in steps:
            outputs = {name: sizes[name] for name in step["outputFiles"]}
            tasks[step["id"]] = batch.function(
                *(work, folder, step["inputFiles"], outputs, seconds[step["id"]] / given.speed),
                reads=[batch.read(folder, name) for name in step["inputFiles"]],
                writes=[batch.write(folder, name) for name in outputs],
                name=step["name"],
            )
        program = batch.compile(list(tasks.values()), name=given.instance.stem)
        program.run(check=True)
        edges = {(edge.before, edge.after) for edge in program.graph.edges()}
        report = program.report("wfcommons_workflow.html")
        path = program.critical_path()

    number = {name: position for position, name in enumerate(tasks)}
    listed = {(number[each], number[s["id"]]) for s in steps for each in s["parents"]}
    print(f"{'program':12} tasks  seconds")
    spent, count = Counter(), Counter(step["name"] for step in steps)
    for step in steps:
        spent[step["name"]] += tasks[step["id"]].info.seconds
    for name in count:
        print(f"{name:12} {count[name]:5}  {spent[name]:7.2f}")
    print(f"{len(edges)} edges follow from the files, {len(edges & listed)} of them are listed")
    print(f"makespan {path.makespan:.2f} s; work on 2 slots {sum(spent.values()) / 2:.2f} s")
    print("report:", report)


if __name__ == "__main__":
    main()
