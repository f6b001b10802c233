"""CPython's looks at threads; those of a cluster's client come and go as they like."""

from __future__ import annotations


def threading_setup() -> tuple[()]:
    return ()


def threading_cleanup(*before: object) -> None:
    pass


def requires_working_threading(*, module: bool = False) -> None:
    pass
