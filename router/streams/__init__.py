"""Streams that can be come back to: the log of their blocks, who writes it, and who follows it."""
