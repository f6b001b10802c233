"""Installs a wheel into a fresh environment and runs the README's programs there.

``python tests/package/try_wheel.py dist/daskbatch-1.0.0-py3-none-any.whl``: the environment has the
versions of `requirements/demo.txt`, and the programs run outside of the checkout. `make dist` calls
this. It ends with an error if a program fails or prints something else than the README shows.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
_PROGRAM = re.compile(r"```python\n(.*?)```\n+```text\n(.*?)```", re.DOTALL)


def install(wheel: Path, directory: Path) -> Path:
    """Make an environment with a wheel and its locked dependencies; return its Python."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--requirement", PROJECT / "requirements" / "demo.txt"], check=True)
    subprocess.run([*pip, "--no-deps", wheel.resolve()], check=True)
    return python


def try_programs(python: Path, directory: Path) -> int:
    """Run the README's programs that show their output; return how many there are.

    Raises
    ------
    SystemExit
        A program failed, or its output is another one.
    """
    found = _PROGRAM.findall((PROJECT / "README.md").read_text("utf-8"))
    for number, (program, expected) in enumerate(found):
        place = directory / str(number)
        place.mkdir()
        script = place / "program.py"
        script.write_text(program, encoding="utf-8")
        run = subprocess.run(
            [python, script], cwd=place, capture_output=True, text=True, timeout=300
        )
        printed = run.stdout.replace(str(place), "<here>")
        if run.returncode or run.stderr or printed != expected:
            raise SystemExit(f"program {number} of the README: {run.stderr}\n{printed}")
    return len(found)


def main() -> None:
    (wheel,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        python = install(Path(wheel), Path(directory, "environment"))
        count = try_programs(python, Path(directory))
        typed = "import daskbatch, pathlib; print(pathlib.Path(daskbatch.__file__).parent)"
        where = subprocess.run(
            [python, "-c", typed], cwd=directory, capture_output=True, text=True, check=True
        ).stdout.strip()
        if not where.startswith(directory) or not Path(where, "py.typed").is_file():
            raise SystemExit(f"the wheel is not what was imported: {where}")
    if not count:
        raise SystemExit("the README has no program")
    print(f"{Path(wheel).name}: {count} programs of the README run in a fresh environment")


if __name__ == "__main__":
    main()
