"""What the user asked for, as frozen, validated records.

Does not know what becomes of it: tasks, clusters and their order are for others.
"""
