"""Finds and ends processes together with all that they have started.

Uses the standard library and psutil alone.
"""
