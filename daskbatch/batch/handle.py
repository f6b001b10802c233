"""What a task leaves behind, as the user holds it: its result, its stdout or its stderr.

Does not know where that is, nor how it comes here; the task does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskbatch.batch.task import Task


class Handle:
    """What a task leaves behind: its result, its stdout or its stderr.

    Given as an argument to another task, it stands for its value, and makes the other wait.

    Examples
    --------
    >>> task = batch.function(print, "hello")
    >>> task.run()
    >>> task.stdout.get()
    'hello'
    """

    __slots__ = ("_part", "_task")

    def __init__(self, task: Task, part: str) -> None:
        self._task = task
        self._part = part

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the task and give the value.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TimeoutError
            The time is up first.
        LifecycleError
            Nobody has started the task.
        Exception
            For a result, what the task raised: the same type and arguments, with the
            worker's traceback as its cause. `DependencyFailed` if it did not run because
            another failed, `TaskCancelled` if it was cancelled; `ProcessFailed`, `TaskTimeout`,
            `TaskCrashed`, `WorkerLost` and `SerializationError` say what else has become of it.
        """
        return self._task._get(self._part, timeout)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._task._as_argument(self._part)

    def __repr__(self) -> str:
        return f"<{self._part} of {self._task!r}>"
