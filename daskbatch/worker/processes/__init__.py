"""Processes and all that they start: found, and ended.

Does not know tasks. The standard library and psutil alone.
"""
