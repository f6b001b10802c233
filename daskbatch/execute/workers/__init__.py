"""Names the workers of a cluster, and watches them join and leave.

Any thread may use these classes.
"""
