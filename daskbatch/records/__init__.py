"""What is recorded of a run: its tasks, its events, and where they are written."""
