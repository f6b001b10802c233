"""Decides which tasks may run when: pure functions of the description, with no I/O, clock or Dask.

Does not know what tasks do, nor where and how they are run.
"""
