"""Where a call goes: pure functions over a route's targets, what the request needs, and how the targets stand."""
