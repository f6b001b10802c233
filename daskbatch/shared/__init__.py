"""What tasks share: dictionaries and queues on the workers of a cluster.

Does not know tasks, but that one that waits leaves its slot to others.
"""
