"""Templates (PTD files): read, validated, and filled by the arguments of a call.

Does not know tasks; a filled template is a description.
"""
