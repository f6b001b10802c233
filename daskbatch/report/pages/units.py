"""Writes times and sizes for people.

Pure; any thread may call all functions.
"""

from __future__ import annotations

from datetime import datetime


def seconds_text(seconds: float | None) -> str:
    """Return a time span, with the unit that fits; a dash if it is not known.

    Examples
    --------
    >>> seconds_text(0.0042), seconds_text(3.14159), seconds_text(75), seconds_text(7380)
    ('4.2 ms', '3.14 s', '1 min 15 s', '2 h 03 min')
    """
    if seconds is None:
        return "–"
    sign, size = ("−" if seconds < 0 else ""), abs(seconds)
    if size < 5e-7:
        return "0 s"
    if size < 1e-3:
        return f"{sign}{size * 1e6:.3g} µs"
    if size < 0.9995:
        return f"{sign}{size * 1e3:.3g} ms"
    if size < 59.95:
        return f"{sign}{size:.3g} s"
    whole = round(size)
    if whole < 3600:
        return f"{sign}{whole // 60} min {whole % 60:02} s"
    return f"{sign}{whole // 3600} h {whole % 3600 // 60:02} min"


def bytes_text(size: float | None) -> str:
    """Return a size in bytes, with the unit that fits; a dash if it is not known.

    Examples
    --------
    >>> bytes_text(512), bytes_text(5_000_000), bytes_text(None)
    ('512 B', '4.77 MiB', '–')
    """
    if size is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def percent_text(part: float) -> str:
    """Return a part of 1 as per cent.

    Examples
    --------
    >>> percent_text(0.256), percent_text(-0.0321), percent_text(0.0)
    ('26 %', '−3.2 %', '0 %')
    """
    size = abs(part) * 100
    text = f"{size:.0f}" if size >= 9.95 or size == 0 else f"{size:.1f}"
    return f"{'−' if part < 0 and float(text) else ''}{text} %"


def time_text(time: float | None) -> str:
    """Return a time since the epoch as date and time of this place; a dash if it is not known."""
    if time is None:
        return "–"
    return datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
