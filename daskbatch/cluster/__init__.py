"""Connects a client's dispatcher to Dask: connections, and plugins of scheduler and nannies.

Any thread may use a `Session`. The plugins run on the event loops of the scheduler and nannies.
"""
