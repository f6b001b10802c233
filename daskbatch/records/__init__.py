"""What is recorded of a run: its tasks, edges, slots and programs.

`run_record` holds the frozen records that reports, traces and pictures are made from.
"""
