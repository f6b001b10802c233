"""Pickles plugins so that they load on any Python, and run only beside the same software.

A pickled plugin is an expression in Python's source code, because bytecode and the pickles of our
classes must not reach another version. Where the software is the same, it makes the plugin. Else a
worker gets a plugin that reports its software and does nothing else, a nanny one that does nothing,
and the scheduler raises `ImportError`. A worker without daskbatch can so serve other clients.
"""

from __future__ import annotations

from typing import Any

from distributed import NannyPlugin, SchedulerPlugin, WorkerPlugin

from daskbatch.cluster import nanny_plugin, scheduler_plugin
from daskbatch.cluster.versions.software import own_software
from daskbatch.worker import plugin as worker_plugin

#: Makes a plugin, or what stands for it. `found` is the `Software` of the process.
_EXPRESSION = """
(lambda sys, util, platform, distributed: (
    lambda found: util.import_module({module!r}).{name}() if found == {wanted!r} else {other}
)((
    "%d.%d" % sys.version_info[:2],
    __import__("daskbatch").__version__ if util.util.find_spec("daskbatch") else "",
)))(*map(__import__, ("sys", "importlib.util", "platform", "distributed")))
""".strip()

#: What the scheduler may send to all workers. A worker without a handler would end.
_MESSAGES = tuple(
    f"daskbatch-{name}"
    for name in (
        *("revoke", "forget", "end", "leave", "stay"),
        *("free", "gang-over", "granted", "exchange", "regained"),
    )
)

#: On a worker: reports the software, and ignores all messages.
_REPORTING = f"""
type("SoftwareReport", (distributed.WorkerPlugin,), {{
    "setup": lambda self, worker: (
        worker.stream_handlers.update(dict.fromkeys({_MESSAGES!r}, lambda **message: None)),
        worker.batched_send({{
            "op": "daskbatch-unfit", "host": platform.node(),
            "python": found[0], "daskbatch": found[1],
        }}),
    ) and None
}})()
""".strip()

#: On the scheduler: raises an exception.
_REFUSING = """
(_ for _ in ()).throw(ImportError(
    "the scheduler on %s has Python %s and %s"
    % (platform.node(), found[0], "daskbatch " + found[1] if found[1] else "no daskbatch")
))
""".strip()


def _reduced(module: str, name: str, other: str) -> tuple[Any, tuple[str]]:
    """Return what pickle calls to make a plugin: `eval`, with the expression."""
    wanted = tuple(own_software())
    return eval, (_EXPRESSION.format(module=module, name=name, wanted=wanted, other=other),)


class GuardedNannyPlugin(NannyPlugin):  # type: ignore[misc]
    """Becomes a `BatchNannyPlugin` where it is unpickled, if the software is the same there."""

    name = nanny_plugin.PLUGIN_NAME
    idempotent = True
    restart = False

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _reduced(nanny_plugin.__name__, "BatchNannyPlugin", "distributed.NannyPlugin()")


class GuardedSchedulerPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Becomes a `BatchSchedulerPlugin` where it is unpickled, if the software is the same there."""

    name = scheduler_plugin.PLUGIN_NAME
    idempotent = True

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _reduced(scheduler_plugin.__name__, "BatchSchedulerPlugin", _REFUSING)


class GuardedWorkerPlugin(WorkerPlugin):  # type: ignore[misc]
    """Becomes a `BatchWorkerPlugin` where it is unpickled, if the software is the same there."""

    name = worker_plugin.PLUGIN_NAME
    idempotent = True

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _reduced(worker_plugin.__name__, "BatchWorkerPlugin", _REPORTING)
