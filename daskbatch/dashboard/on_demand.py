"""Loads Dask's dashboard when a page of it is first requested.

To import its pages takes as long as to import the rest of the scheduler, and most programs end
before anybody looks. All runs on the scheduler's event loop.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from distributed import Scheduler
from tornado import web

#: What is imported, in another thread: the scheduler goes on meanwhile.
_MODULES = ("distributed.dashboard.scheduler", "daskbatch.dashboard.page")


def has_pages() -> bool:
    """Return whether the library is installed that the pages need."""
    return importlib.util.find_spec("bokeh") is not None


class DashboardOnDemand(web.Application):
    """Answers all requests that no other part of the server answers, until the pages are there.

    Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        A scheduler without a dashboard, which has an HTTP server.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__([(r"/.*", _Load, {"dashboard": self})])
        self._scheduler = scheduler
        self._then: list[Callable[[], None]] = []
        self._loading: asyncio.Task[None] | None = None
        scheduler.http_application.add_application(self)

    def then(self, call: Callable[[], None]) -> None:
        """Call a function once Dask's pages are there."""
        self._then.append(call)

    async def load(self) -> None:
        """Load the pages; the first call does, and others wait for it."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load())
        await asyncio.shield(self._loading)

    async def _load(self) -> None:
        for module in _MODULES:
            await asyncio.to_thread(importlib.import_module, module)
        from distributed.dashboard.scheduler import connect

        scheduler = self._scheduler
        scheduler.http_application.applications.remove(self)
        connect(scheduler.http_application, scheduler.http_server, scheduler)
        for call in self._then:
            call()
        self._then.clear()


def on_demand_of(scheduler: Scheduler) -> DashboardOnDemand | None:
    """Return the dashboard of a scheduler that is not loaded yet; None if there is none."""
    applications = getattr(scheduler.http_application, "applications", ())
    return next((each for each in applications if isinstance(each, DashboardOnDemand)), None)


class _Load(web.RequestHandler):
    """Loads the pages, and has the browser ask again."""

    def initialize(self, dashboard: DashboardOnDemand) -> None:
        self._dashboard = dashboard

    async def get(self, *_: Any) -> None:
        await self._dashboard.load()
        self.redirect(self.request.uri)
