"""Requests and answers over authenticated sockets, or within a process.

Does not know what is asked for.
"""
