"""Keeps tasks off workers whose Python or daskbatch is not that of the scheduler and the client.

`unfit_workers` runs on the scheduler's event loop; any thread may use the other modules.
"""
