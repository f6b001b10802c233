"""Runs open blocks: blocks that receive members by a direct connection while they run."""
