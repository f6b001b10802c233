"""Stores large values once on each host, in memory that every process of the host can map.

See ``docs/data.md`` for what is copied when.
"""
