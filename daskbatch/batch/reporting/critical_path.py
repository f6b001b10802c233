"""The critical path of a compiled task, as a list of tasks with the reasons between them.

Any thread may make one.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from daskbatch.records.run_record import RunRecord
from daskbatch.report.analysis.critical_path import PathRecord, find_critical_path
from daskbatch.report.analysis.occupancy import Occupancy
from daskbatch.report.analysis.run_graph import RunGraph
from daskbatch.report.pages.units import seconds_text

#: Of a longer path the text shows this many tasks at each end.
_MAX_SHOWN_ENDS = 20


class CriticalPath(list[Any]):
    """The tasks that determine the makespan of a program, first to last: a list of `Task`.

    Its text is a table of them. It is made once, and does not follow the program.

    Parameters
    ----------
    tasks : iterable of Task
        The tasks.
    record : PathRecord
        The same as records: with the reasons of the edges, and the gaps.

    Attributes
    ----------
    steps : tuple of PathStep
        For each task: ``name``, ``seconds``, ``reason`` (why it waited for the one before it),
        ``gap`` (the time between both) and ``gap_cause``.
    length, gaps, makespan : float
        The seconds of the tasks, of the gaps, and of both together.
    """

    def __init__(self, tasks: Iterable[Any], record: PathRecord) -> None:
        super().__init__(tasks)
        self.steps = record.steps
        self.length, self.gaps, self.makespan = record.length, record.gaps, record.makespan

    def __str__(self) -> str:
        lines = [
            f"{len(self)} task{'s' * (len(self) != 1)} took {seconds_text(self.length)}, with "
            f"{seconds_text(self.gaps)} of gaps: {seconds_text(self.makespan)}"
        ]
        for index, step in enumerate(self.steps):
            if _MAX_SHOWN_ENDS <= index < len(self.steps) - _MAX_SHOWN_ENDS:
                if index == _MAX_SHOWN_ENDS:
                    lines.append(f"  ... {len(self.steps) - 2 * _MAX_SHOWN_ENDS} more")
                continue
            cause = f" ({step.gap_cause})" if step.gap_cause else ""
            why = f" waited for the task above: {step.reason};" if step.reason else ""
            lines.append(
                f"  {step.name}:{why} gap {seconds_text(step.gap)}{cause}, "
                f"took {seconds_text(step.seconds)}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def find_path(run: RunRecord, tasks: Iterable[Any]) -> CriticalPath:
    """Return the critical path of a run as tasks.

    Parameters
    ----------
    run : RunRecord
        The record of the tasks.
    tasks : iterable of Task
        The tasks.
    """
    record = find_critical_path(RunGraph(run), Occupancy(run))
    by_uid = {task.uid: task for task in tasks}
    return CriticalPath((by_uid[step.uid] for step in record.steps), record)
