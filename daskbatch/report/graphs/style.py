"""The colours of states and hazards, in pictures, reports and notebooks.

Hazards also differ in their dashes, for people who do not tell the colours apart.
"""

from __future__ import annotations

#: Fill and border of a node, by state.
STATE_COLOURS = {
    "created": ("#f7fafc", "#718096"),
    "queued": ("#edf2f7", "#718096"),
    "waiting": ("#e2e8f0", "#718096"),
    "running": ("#bee3f8", "#2b6cb0"),
    "done": ("#c6f6d5", "#2f855a"),
    "failed": ("#feb2b2", "#c53030"),
    "skipped": ("#feebc8", "#c05621"),
    "cancelled": ("#e9d8fd", "#6b46c1"),
}

#: The colour and the dashes of an edge, by hazard: that of its first reason that stands here.
HAZARD_STYLES = {
    "argument": ("#2b6cb0", ""),
    "RAW": ("#2f855a", ""),
    "WAR": ("#c05621", "7 3"),
    "WAW": ("#9b2c2c", "2 3"),
    "RAR": ("#718096", "7 3 2 3"),
}
OTHER_STYLE = ("#718096", "")

#: What a hazard means, for legends.
HAZARD_WORDS = {
    "argument": "argument: takes a result",
    "RAW": "RAW: reads what was written",
    "WAR": "WAR: overwrites what was read",
    "WAW": "WAW: overwrites what was written",
    "RAR": "RAR: reads in order",
}


def edge_style(reasons: tuple[str, ...]) -> tuple[str, str]:
    """Return the colour and the dashes of an edge."""
    return next((style for name, style in HAZARD_STYLES.items() if name in reasons), OTHER_STYLE)
