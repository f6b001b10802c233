"""The address of a scheduler, from the file that it writes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from daskbatch.cluster.scheduler_file import is_file_name, read_scheduler_file
from daskbatch.errors import ServiceLost, SpecError

ADDRESS = "tcp://10.0.0.1:8786"


@pytest.mark.parametrize(
    ("cluster", "names_a_file"),
    [
        (ADDRESS, False),
        ("tls://host:1", False),
        ("inproc://10.0.0.1/7/1", False),
        ("host:8786", False),
        ("scheduler.json", True),
        ("/home/me/scheduler", True),
        ("a dir/schedüler", True),
        (Path("scheduler"), True),
    ],
)
def test_what_names_a_file(cluster: str | Path, names_a_file: bool) -> None:
    assert is_file_name(cluster) is names_a_file


def test_the_file_may_be_written_a_little_later(tmp_path: Path) -> None:
    path = tmp_path / "sched üler.json"
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(read_scheduler_file(path, 60)))
    reader.start()
    # Not complete at first, as where another host writes it at this moment.
    path.write_text('{"type": "Sch')
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps({"type": "Scheduler", "address": ADDRESS}))
    whole.replace(path)
    reader.join(60)
    assert found == [ADDRESS]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path / "nowhere" / "none.json"):
        with pytest.raises(ServiceLost, match="none.json' is not there"):
            read_scheduler_file(str(path), 0.0)


@pytest.mark.parametrize("content", ["{", "[]", '{"address": null}', "{}", "\0"])
def test_another_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(SpecError, match=r"s\.json"):
        read_scheduler_file(path, 0.0)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ServiceLost, match="cannot be read"):
        read_scheduler_file(tmp_path, 0.0)
