"""What is shown and written of a run while it runs: events, output, progress."""
