"""Conversations that are kept: how they are shown, what of them is sent, and how answers are saved while they come."""
