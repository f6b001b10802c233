"""Dask futures among the arguments of tasks: their values are sent from worker to worker."""
