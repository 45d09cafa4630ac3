"""Answers that are kept, so that the same question need not be paid for twice."""
