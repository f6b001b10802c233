"""Records of what the user asked for: frozen, validated, and independent of tasks and clusters.

Does not know how a description is ordered, sent or run. Any number of threads may use a record.
"""
