"""What travels between clients and shards, and what is saved in files."""
