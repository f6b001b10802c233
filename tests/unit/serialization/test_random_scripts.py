"""What random scripts define does in tasks what it does in one process, and returns as itself."""

from __future__ import annotations

import pytest
from support.scripts import TaskProcess, check

#: The scripts that the suite runs, in groups; `faults/scripts_harness.py` runs any number.
GROUPS, GROUP_SIZE = 10, 100


@pytest.mark.parametrize("group", range(GROUPS))
def test_a_script_does_in_tasks_what_it_does_here(group: int, elsewhere: TaskProcess) -> None:
    for seed in range(group * GROUP_SIZE, (group + 1) * GROUP_SIZE):
        try:
            check(seed, elsewhere)
        except BaseException as error:
            error.add_note(f"the script of seed {seed}")
            raise
