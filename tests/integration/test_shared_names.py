"""Messages show a dictionary or a queue by the name that the user gave it."""

from __future__ import annotations

import pickle

from daskbatch import Batch
from daskbatch.describe.access import ObjectName


def nothing(*_: object) -> None:
    pass


def test_an_explanation_names_the_dictionary(batch: Batch) -> None:
    numbers, queue = batch.ddict(name="my numbers"), batch.queue(name="my queue")
    program = batch.compile(
        [
            batch.function(nothing, writes=[batch.write(queue), batch.write(numbers, "k")]),
            batch.function(nothing, reads=[batch.read(numbers, "k")]),
            batch.function(nothing, reads=[batch.read(queue)]),
        ]
    )
    program.run(check=True)
    first, second, third = program.tasks
    assert "it reads my numbers['k']" in program.explain(first, second)
    assert "it reads my queue, which" in program.explain(first, third)


def test_a_name_changes_no_identity() -> None:
    named = ObjectName.make("ddict-1", "my numbers")
    assert named == "ddict-1"
    assert hash(named) == hash("ddict-1")
    assert type(pickle.loads(pickle.dumps(named))) is str
    assert ObjectName.make("ddict-1", None) == "ddict-1"
