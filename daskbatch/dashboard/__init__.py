"""Shows tasks on Dask's dashboard, and on the page /daskbatch beside it.

It runs on the scheduler, in the thread of its event loop.
"""
