"""Profiles the CPU time and the memory of all processes of a cluster that run tasks."""
