"""The directories of the project's files."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
PROJECT = TESTS.parent
DOCS = PROJECT / "docs"
EXAMPLES = PROJECT / "examples"
NOTEBOOKS = PROJECT / "notebooks"
