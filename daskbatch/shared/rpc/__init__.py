"""Requests and replies over authenticated sockets, or within a process; each done at most once."""
