"""The client's direct connections with open blocks: one thread receives, others connect.

A connection is made in the background. If it cannot be made, or nothing arrives on it for some
seconds, the listener is notified, and the tasks take the ordinary way.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import socket
import ssl
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from daskbatch.dispatch.backend import Listener
from daskbatch.dispatch.dispatcher import NOTIFY_INTERVAL_SECONDS
from daskbatch.forking import close_in_children
from daskbatch.serialization.safe_text import summary
from daskbatch.worker.handshake import ServerAddress, connect_to_server
from daskbatch.worker.open_blocks.frame_link import PING_INTERVAL_SECONDS, FrameLink, LinkClosed
from daskbatch.worker.open_blocks.messages import ATTACHED

_CONNECT_TIMEOUT_SECONDS = 4.0


class OpenLinks:
    """The connections of one client. Any thread may use it.

    Parameters
    ----------
    topic : str
        The topic of the client.
    call : callable
        Calls a function of the listener so that an exception is reported and not lost.
    tls : callable
        Returns the client's certificates for workers with TLS.
    """

    def __init__(
        self,
        topic: str,
        call: Callable[..., None],
        tls: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self._topic = topic
        self._call = call
        self._tls = tls
        self.listener: Listener | None = None
        self._lock = threading.Lock()
        #: The open connections, and their blocks.
        self._links: dict[FrameLink, int] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        #: Why the last attempt to connect has failed.
        self._failure = ""
        self._wake_sockets: tuple[socket.socket, socket.socket] | None = None

    def failure(self) -> str:
        """Return why the last attempt to connect has failed; an empty text if none has."""
        return self._failure

    def connect(self, block: int, address: ServerAddress) -> None:
        """Connect to an open block in the background."""
        threading.Thread(
            target=self._connect, args=[block, address], name="daskbatch-open-connect", daemon=True
        ).start()

    def _connect(self, block: int, address: ServerAddress) -> None:
        link: FrameLink | None = None
        try:
            tls = self._tls() if address.tls else None
            sock = connect_to_server(address, tls, _CONNECT_TIMEOUT_SECONDS)
            link = FrameLink(sock, self._wake)
            link.send(pickle.dumps((self._topic, block), 5))
            frames = self._first_frames(link)
        except Exception as error:
            if link is not None:
                link.close()
            was_cut = not isinstance(error, LinkClosed)
            if was_cut:
                self._failure = f"{address.host}:{address.port}: {summary(error)}"
            # If the block has just ended, the worker closes the connection.
            self._notify("link_lost", block, was_cut)
            return
        with self._lock:
            if self._closed:
                link.close()
                return
            self._links[link] = block
            if self._thread is None:
                self._start()
        self._notify("link_opened", block, link)
        self._notify("report_all", frames)
        self._wake()

    def _first_frames(self, link: FrameLink) -> list[bytes]:
        end = monotonic() + _CONNECT_TIMEOUT_SECONDS
        while not (frames := link.receive()):
            if monotonic() > end:
                raise TimeoutError("the worker does not answer")
            link.wait(0.1)
        if frames[0] != ATTACHED:
            raise LinkClosed("the block has ended")
        return frames[1:]

    def _start(self) -> None:
        self._wake_sockets = socket.socketpair()
        for each in self._wake_sockets:
            each.setblocking(False)
            close_in_children(each)
        self._thread = threading.Thread(target=self._run, name="daskbatch-open", daemon=True)
        self._thread.start()

    def _wake(self) -> None:
        sockets = self._wake_sockets
        if sockets is not None:
            with contextlib.suppress(OSError):  # full: it is awake; or closed
                sockets[1].send(b"w")

    def _notify(self, method: str, *arguments: Any) -> None:
        listener = self.listener
        if listener is not None:
            self._call(getattr(listener, method), *arguments)

    # -- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        sockets = self._wake_sockets
        assert sockets is not None
        process = os.getpid()
        selector = selectors.DefaultSelector()
        selector.register(sockets[0], selectors.EVENT_READ)
        registered: dict[FrameLink, int] = {}
        checked_at = monotonic()
        is_awake = True
        while os.getpid() == process:
            if is_awake or not registered:
                is_awake = False
                with self._lock:
                    links = list(self._links)
                    if not links:
                        # Another thread is started for the next connection.
                        self._thread = self._wake_sockets = None
                        break
                for link in links:
                    self._register(selector, registered, link)
            listener = self.listener
            owes = listener is not None and listener.owes_notification
            found = selector.select(NOTIFY_INTERVAL_SECONDS if owes else PING_INTERVAL_SECONDS)
            if owes and not found:
                self._notify("notify_waiting")
            frames: list[bytes] = []
            for key, events in found:
                if key.data is None:
                    is_awake = True
                    with contextlib.suppress(OSError):
                        sockets[0].recv(4096)
                    continue
                link = key.data
                if events & selectors.EVENT_WRITE:
                    link.flush()
                    self._register(selector, registered, link)
                if events & selectors.EVENT_READ:
                    try:
                        frames += link.receive()
                    except LinkClosed:
                        self._drop(selector, registered, link, False)
            if frames:
                self._notify("report_all", frames)  # what becomes ready is looked for once
            now = monotonic()
            if now - checked_at > PING_INTERVAL_SECONDS:
                checked_at = now
                for link in list(registered):
                    if not link.keep_alive():
                        self._drop(selector, registered, link, True)
        selector.close()
        for each in sockets:
            each.close()
        self._notify("notify_waiting")

    def _register(self, selector: Any, registered: dict[FrameLink, int], link: FrameLink) -> None:
        """Have the selector look for what a link waits for now."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.has_unsent else 0)
        before = registered.get(link)
        if before == events:
            return
        try:
            if before is None:
                selector.register(link.sock, events, link)
            else:
                selector.modify(link.sock, events, link)
            registered[link] = events
        except (ValueError, KeyError, OSError):  # it has been closed
            self._drop(selector, registered, link, False)

    def _drop(
        self, selector: Any, registered: dict[FrameLink, int], link: FrameLink, was_cut: bool
    ) -> None:
        registered.pop(link, None)
        with contextlib.suppress(KeyError, ValueError, OSError):
            selector.unregister(link.sock)
        with self._lock:
            block = self._links.pop(link, None)
        link.close()
        if block is not None:
            self._notify("link_lost", block, was_cut)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._closed = True
            links = list(self._links)
            self._links.clear()
        for link in links:
            link.close()
        self._wake()
