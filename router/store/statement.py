"""A statement as the drivers take it."""

from collections.abc import Sequence
from typing import Any, TypeAlias

Statement: TypeAlias = tuple[str, Sequence[tuple[Any, ...]]]
"""SQL with the driver's own placeholders (`?` or `$1`), and the rows it is run for."""
