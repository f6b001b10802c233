"""What tasks share: dictionaries and queues on the workers of a cluster."""
