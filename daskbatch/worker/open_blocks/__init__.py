"""Runs open blocks: blocks that receive members by a direct connection while they run.

A thread of the worker runs each block; the event loop, and the thread that accepts clients, use it
at the same time.
"""
