"""Profiles the CPU time and the memory of all processes of a cluster that run tasks.

Users reach both profilers by an `ExecutionContext`; several threads may use one profiler.
"""
