"""What has become of the experiments, as this process knows it: arms that were stopped, shares that were adapted.

The store has the truth, which all processes look at now and then; a call only looks here.
"""

from collections.abc import Mapping
from typing import Final

from router.experiment import ExperimentState

_UNTOUCHED: Final = ExperimentState()


class States:
    """One for the process; it outlives reloads of the configuration."""

    def __init__(self) -> None:
        self._known: dict[str, ExperimentState] = {}

    def state(self, name: str) -> ExperimentState:
        """That of the experiment of this name."""
        return self._known.get(name, _UNTOUCHED)

    def take(self, states: Mapping[str, ExperimentState]) -> None:
        """What the store says of all of them. A state that has not changed stays the same object."""
        self._known = {
            name: self._known[name] if self._known.get(name) == state else state for name, state in states.items()
        }
