"""Reports, pictures and notebook forms of what a program holds: tasks, programs and a Batch.

`live_record` makes the `RunRecord` that `daskbatch.report` needs; the other modules show it.
"""
