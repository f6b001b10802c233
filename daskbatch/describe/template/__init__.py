"""Reads templates (PTD files), validates them, and fills them with the arguments of a call.

A filled template is a `binding.TaskDescription`: plain data, from which `daskbatch.batch` makes a
task.
"""
