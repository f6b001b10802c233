"""What is shown and written of a run while it runs: events, output, progress.

The dispatcher calls the recorder of events with its lock held; the rest runs in the thread that
asks, or in a helper thread.
"""
