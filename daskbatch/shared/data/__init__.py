"""What travels between clients and shards, and what is saved in files.

Nothing here opens a connection; only `snapshot` reads and writes files.
"""
