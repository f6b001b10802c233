"""Reports, traces and pictures of a run, made from its `RunRecord`.

`analysis` computes, `graphs` draws the graph, `pages` writes the HTML file, `trace` writes trace
events. Nothing here knows tasks, Dask or a cluster.
"""
