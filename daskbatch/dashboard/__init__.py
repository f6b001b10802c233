"""Shows tasks on Dask's dashboard, and on the page /daskbatch beside it; runs on the scheduler."""
