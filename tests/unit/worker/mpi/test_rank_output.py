"""What the ranks of a job write: all of it by rank, and its end in messages."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from daskbatch.worker.execution.capture import Capture
from daskbatch.worker.execution.ranked_text import RankedText
from daskbatch.worker.mpi.rank_output import RankOutput, last_lines

TEXTS = st.lists(st.text(alphabet="ab\n\N{SNOWMAN}", max_size=6), min_size=1, max_size=5)


@given(TEXTS)
def test_each_rank_has_its_text_and_all_have_whole_lines(texts: list[str]) -> None:
    sink = Capture(1000)
    output = RankOutput(sink, len(texts))
    for rank, text in reversed(list(enumerate(texts))):
        for character in text:
            output.stdout[rank].add(character.encode())
    output.settle()
    found, errors = sink.texts()
    assert errors == ""
    assert isinstance(found, RankedText)
    copy = pickle.loads(pickle.dumps(found, 5))
    for each in (found, copy):
        assert each.size == len(texts)
        assert [each.rank(i) for i in range(len(texts))] == [t.removesuffix("\n") for t in texts]
    whole = "".join(text if text[-1:] in ("", "\n") else text + "\n" for text in texts)
    assert str(copy) == whole.removesuffix("\n")
    sink.clear()
    assert sink.texts() == ("", "")
    sink.stdout.add(b"next")
    assert type(sink.stdout.text()) is str


def test_the_end_of_many_ranks_is_short() -> None:
    said = last_lines(["x" * 5000 + f" of rank {i}" for i in range(1000)])
    assert len(said) < 25_000
    assert said.endswith("...")
    same = last_lines(["the same\n" * 50] * 1000)
    assert same == "\nstderr of ranks 0-999:\n" + "\n".join(["the same"] * 10)
    assert last_lines(["", "\n", " "]) == ""
