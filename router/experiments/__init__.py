"""Experiments: who is in which arm, what was measured, and what may be said of it today."""
