"""Measures what a request and a delta cost in this gateway and in others; see README.md."""
