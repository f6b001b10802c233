"""Keeps tasks off workers whose Python or daskbatch is not that of the client."""
