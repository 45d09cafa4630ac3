"""The revisions. Each says what it changes in words of its own time: `tables.py` moves on, they do not."""
