"""What a client and an open block send each other arrives as it was."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from daskbatch.worker.execution.block import (
    LOCAL,
    BlockMember,
    ClosedReport,
    DeclaredFiles,
    Limits,
    Link,
    OutcomeReport,
    Report,
)
from daskbatch.worker.execution.measures import Measures, MemberDetails
from daskbatch.worker.open_blocks.messages import (
    NewMembers,
    OpenMember,
    decode_members,
    decode_report,
    encode_members,
    encode_report,
)

MEASURES = Measures("tcp://ä:1", 7, array("d", [1.5]).tobytes(), array("f", [0.5]).tobytes(), {}, 3)


def types_of(value: Any) -> Any:
    """Return the types of a value and of all that is in it."""
    parts = [types_of(each) for each in value] if isinstance(value, (tuple, list)) else []
    return type(value), parts


@pytest.mark.parametrize(
    "member",
    [
        OpenMember(0, b"data", "ä task"),
        OpenMember(1, b"", "task", Link()),
        OpenMember(
            2,
            b"data",
            "task",
            Link(
                ((LOCAL, 1), (LOCAL, 2)),
                ((LOCAL, 3),),
                (
                    BlockMember((LOCAL, 1), "stdout"),
                    b"value",
                    "a text",
                    BlockMember((0, 2), "result"),
                ),
            ),
            Limits(2, 1.5, "/a b", (("NAME", "ü"),)),
            DeclaredFiles(("/a b/ü",), ("/c",), ("/c",), (("read", "name", b"key"),), 0),
        ),
    ],
)
def test_a_member_arrives_as_it_was_sent(member: OpenMember) -> None:
    new = NewMembers([b"function"], [member, OpenMember(0, b"", "other")], b"changes", [4, 5])
    found = decode_members(encode_members(new))
    assert found == new
    assert types_of(found.members) == types_of(new.members)


@pytest.mark.parametrize(
    "report",
    [
        OutcomeReport(1, 3, b"\0", [b"value"], array("f", [0.1]).tobytes(), {}, MEASURES),
        OutcomeReport(
            *(1, 3, b"\0", [None], array("f", [0.1]).tobytes()),
            {3: ("out", "err"), 4: None},
            MEASURES,
            {3: b"reference"},
        ),
        OutcomeReport(
            *(1, 3, b"\0", [b"value"], array("f", [0.1]).tobytes(), {}),
            MEASURES._replace(details={0: MemberDetails(2)}),
        ),
        OutcomeReport(1, 3, b"\3", [None], array("f", [0.0]).tobytes(), {}),
        ClosedReport(1, 5),
    ],
)
def test_a_report_arrives_as_it_was_sent(report: Report) -> None:
    found = decode_report(encode_report(report))
    assert found == report
    assert types_of(found) == types_of(report)
