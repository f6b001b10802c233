"""Connects a client's dispatcher to Dask: connections, and plugins of scheduler and nannies."""
