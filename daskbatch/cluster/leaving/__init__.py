"""Workers that leave in good order: what moves, what ends, and what is reported.

- `departures` is the scheduler's part: it has each worker that leaves begin nothing more, moves
  what the worker has, and waits for what runs there.
- `recipients` decides which workers can leave.
- `probe` finds out quickly that a process no longer listens.
"""
