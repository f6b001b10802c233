"""Counts words in files by `template.yml`, which explains all that a template can hold."""

import tempfile
from pathlib import Path

from daskbatch import Batch

TEXTS = ["The sea, the sea, and over the sea", "the moon", "A sea of stars above the sea"]


def count_words(directory: Path, name: str, word: str, *, ignore_case: bool, report: str) -> int:
    """Count a word in a file, and add a line to a report."""
    text = (directory / name).read_text(encoding="utf-8")
    if ignore_case:
        text, word = text.casefold(), word.casefold()
    count = text.replace(",", "").split().count(word)
    with open(report, "a", encoding="utf-8") as file:  # relative: `cwd` of the template
        file.write(f"{name}: {word} {count}\n")
    return count


def file_name(stem: str, number: int) -> str:
    return f"{stem}-{number}.txt"


def main() -> None:
    template = Path(__file__).with_name("template.yml")
    with tempfile.TemporaryDirectory() as place, Batch() as batch:
        directory = Path(place)
        for number, text in enumerate(TEXTS):
            (directory / file_name("text", number)).write_text(text, encoding="utf-8")
        count = batch.import_func(template, count_words, file_name, directory=directory, longest=30)
        tasks = [count("the", number, ignore_case=True) for number in range(len(TEXTS))]
        # The tasks wait in the background until one of them is needed; then all are started. All
        # tasks write the report, so each waits for the one before.
        print([task.get() for task in tasks])
        with batch.open(directory / "report-0.txt", encoding="utf-8") as report:
            print(report.read(), end="")


if __name__ == "__main__":
    main()
