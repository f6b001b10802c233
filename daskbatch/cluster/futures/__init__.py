"""Holds what makes a Dask future among the arguments of a task stand for its result.

`future_arguments` is the client's part, for any number of threads; `future_states` runs on the
scheduler's event loop.
"""
