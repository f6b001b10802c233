"""Runs the same programs with daskbatch and with other libraries, and writes a page of ratios.

``python benchmarks/compare/compare.py --page docs/about/comparison.md`` or ``make compare``. Each
program runs in a fresh process for each library, in turn, several times. Libraries that are not
installed for this interpreter are left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from fresh_process import run_alone  # noqa: E402
from libraries import LIBRARIES, WORKERS, installed  # noqa: E402
from programs import GRAPHS  # noqa: E402

PROGRAMS = {
    **{name: make().title for name, make in GRAPHS.items()},
    "map": "5,000 no-ops by `map`",
    "single": "200 calls, one after another: `submit(...).result()`",
    "processes": "200 executables (`true`)",
    "dictionary": "500 values put into a shared dictionary, and got",
    "queue": "500 items through a shared queue",
    "start": "from nothing to the first result and back: the whole process",
}
_LIMIT_SECONDS = 300

_ENVIRONMENT = {
    **os.environ,
    "PYTHONWARNINGS": "ignore",
    "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns of each start
    # Some libraries start programs that are installed beside the interpreter.
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
}


def measure(library: str, program: str) -> float | str:
    """Run a program in a fresh process; return its seconds, or why it did not succeed."""
    command = [sys.executable, str(HERE / "run_one.py"), library, program]
    run = run_alone(command, _LIMIT_SECONDS, _ENVIRONMENT)
    if run.remaining:
        print(f"{library}, {program}: left {run.remaining} processes, ended", file=sys.stderr)
    answers = [line for line in run.stdout.splitlines() if line.startswith('{"seconds"')]
    if answers and program != "start":
        return float(json.loads(answers[-1])["seconds"])
    if run.returncode is None:
        return f"no result in {_LIMIT_SECONDS} s"
    if run.returncode or not answers:
        print(f"{library}, {program}: {run.stderr[-800:]}", file=sys.stderr)
        lines = run.stderr.strip().splitlines()
        return lines[-1] if lines else f"exit code {run.returncode}"
    return run.seconds


def can_run(library: str, program: str) -> bool:
    """Return whether a library has what a program needs."""
    method = "graph" if program in GRAPHS else "single" if program == "start" else program
    return hasattr(LIBRARIES[library], method)


def table(times: dict[tuple[str, str], list[float]], libraries: list[str]) -> list[str]:
    """Return the rows: daskbatch's seconds, the other times over them, and the spread."""
    lines = ["| program | " + " | ".join(libraries) + " | spread |"]
    lines.append("|---" * (len(libraries) + 2) + "|")
    for program, title in PROGRAMS.items():
        ours = times.get(("daskbatch", program))
        if not any(key[1] == program for key in times):
            continue  # it was not asked for
        cells, spreads = [], []
        for library in libraries:
            found = times.get((library, program))
            if not found or not ours:
                cells.append("–" if not can_run(library, program) else "failed")
                continue
            ratio = min(found) / min(ours)
            spreads.append((max(found) - min(found)) / min(found))
            text = f"{ratio:.3g}"
            if library == "daskbatch":
                text = f"{min(ours):.3g} s"
            cells.append(f"**{text}**" if ratio < 1 else text)
        spread = f"{max(spreads):.0%}" if spreads else ""
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {spread} |")
    return lines


def losses(times: dict[tuple[str, str], list[float]]) -> list[str]:
    """Return a sentence for each program in which another library is faster."""
    lines = []
    for program, title in PROGRAMS.items():
        ours = times.get(("daskbatch", program))
        others = {
            library: min(found) / min(ours)
            for (library, of), found in times.items()
            if ours and of == program and library != "daskbatch"
        }
        faster = {library: ratio for library, ratio in others.items() if ratio < 1}
        if faster:
            names = ", ".join(
                f"{library} by a factor of {1 / ratio:.2g}"
                for library, ratio in sorted(faster.items(), key=lambda item: item[1])
            )
            lines.append(f"- {title}: {names}.")
    return ["Where others are faster:", "", *lines] if lines else ["No library was faster."]


def failures(reasons: dict[tuple[str, str], str]) -> list[str]:
    """Return a sentence for each library that did not run a program."""
    lines = [
        f"- {PROGRAMS[program]}, {library}: `{reason}`"
        for (library, program), reason in reasons.items()
    ]
    return ["", "Failed:", "", *lines] if lines else []


def busy(loads: tuple[float, float]) -> list[str]:
    """Return a warning if other programs used the machine meanwhile."""
    if loads[0] < WORKERS:
        return []
    return [
        "",
        "**The machine was busy with other work during this run** (see the load below), so that",
        "single numbers may be wrong by a large factor. Repeat it on a quiet machine.",
    ]


def version_of(package: str) -> str:
    """Return the version of a package, which may also be on the path only."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(importlib.import_module(package).__version__)


def commit() -> str:
    """Return the commit of this checkout, for the page."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=HERE,
            capture_output=True,
            text=True,
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def page(
    times: dict[tuple[str, str], list[float]],
    reasons: dict[tuple[str, str], str],
    repeats: int,
    loads: tuple[float, float],
) -> str:
    """Return the page."""
    libraries = [name for name in LIBRARIES if any(key[0] == name for key in [*times, *reasons])]
    packages = sorted({LIBRARIES[name].package for name in libraries} - {"concurrent.futures"})
    versions = ", ".join(f"{name} {version_of(name)}" for name in packages)
    return "\n".join(
        [
            "# Comparison",
            "",
            "The same programs with each library, on two worker processes of one machine. The",
            "first column is the time of daskbatch. The others are the time of the library over",
            "it: 2 is twice as slow. Where daskbatch is slower, the number is **bold**.",
            "A dash: the library has nothing for this program.",
            "",
            *table(times, libraries),
            "",
            *losses(times),
            *failures(reasons),
            "",
            f"Best of {repeats} run{'s' * (repeats > 1)}, each in a fresh process, the libraries",
            "in turn. *spread* is the largest distance between two runs of one library, as a part",
            "of its best.",
            *busy(loads),
            "",
            f"- Date: {date.today().isoformat()}",
            f"- Machine: {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs;"
            f" {WORKERS} workers",
            f"- Load of the machine before and after (1 minute; the runs themselves make about"
            f" {WORKERS}): {loads[0]:.1f} and {loads[1]:.1f}",
            f"- Versions: Python {platform.python_version()}, {versions}; commit {commit()}",
            "- Command: `make compare`, with `COMPARE=` the Python that has the libraries:"
            " `python -m venv rivals; rivals/bin/pip install . ray parsl executorlib loky;"
            " make compare COMPARE=rivals/bin/python`",
            "",
            "Libraries whose executors take no futures as arguments (ProcessPoolExecutor, loky,",
            "executorlib) are driven by hand: a call is submitted when what it needs is there.",
            "Parsl's connections are not encrypted here, as those of the others are not.",
            "`benchmarks/compare/` has the programs, and what each library does.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--page", type=Path, help="the page to write; else it is printed")
    parser.add_argument("--libraries", nargs="*", default=list(LIBRARIES))
    parser.add_argument("--programs", nargs="*", default=list(PROGRAMS))
    options = parser.parse_args()
    times: dict[tuple[str, str], list[float]] = {}
    load_before = os.getloadavg()[0]
    reasons: dict[tuple[str, str], str] = {}
    for turn in range(options.repeats):
        for program in options.programs:
            for library in options.libraries:
                key = library, program
                if not installed(library) or not can_run(*key) or key in reasons:
                    continue
                found = measure(library, program)
                if isinstance(found, str):
                    reasons[key] = found
                    times.pop(key, None)
                    continue
                times.setdefault(key, []).append(found)
                print(
                    f"{turn + 1}: {program}, {library}: {found:.3f} s", file=sys.stderr, flush=True
                )
    text = page(times, reasons, options.repeats, (load_before, os.getloadavg()[0]))
    if options.page:
        options.page.write_text(text, encoding="utf-8")
        print(f"wrote {options.page}")
    else:
        print(text)


if __name__ == "__main__":
    main()
