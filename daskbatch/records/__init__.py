"""What is recorded of a run: its tasks, its events, and where they are written.

Frozen records and pure functions; any thread may use them. `EventLog` writes to files.
"""
