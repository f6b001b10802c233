"""Stands in for CPython's package of tests, where the running Python has none of executors."""
