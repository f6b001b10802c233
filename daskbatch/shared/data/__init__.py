"""What travels between clients and shards, and what rests in files.

Does not know where it travels.
"""
