"""`POST /admin/experiments/{name}/reset`: let a stopped arm go on, and shares be those of the configuration."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from msgspec import Struct

from router.door import Door
from router.errors import NotFound
from router.experiment import Experiment, ExperimentState
from router.http.receipts import readable
from router.http.request import read_head
from router.nearest import did_you_mean
from router.store.experiment_states import change_state
from router.store.store import Store


class Reset(Struct, frozen=True):
    experiment: str
    changed: bool
    """Whether anything was stopped or adapted."""


def admin_experiment_routes(
    store: Store, experiments: Callable[[], Mapping[str, Experiment]], door: Door
) -> list[HTTPRouteHandler]:
    @post(
        "/admin/experiments/{name:str}/reset",
        summary="Let the stopped arms of an experiment go on",
        tags=["experiments"],
        status_code=200,
    )
    async def reset_experiment(request: Request[Any, Any, Any], name: FromPath[str]) -> Reset:
        """All processes follow within a second. A guardrail that is still breached stops the arm again at its next
        look: change the experiment's `salt` to begin anew."""
        await door.admin(read_head(request.scope).credentials)
        known = experiments()
        if name not in known:
            raise NotFound(
                f"no experiment `{name[:80]}`{did_you_mean(name, known)} (known: {', '.join(known) or 'none'})"
            )
        with readable():
            changed = await change_state(store, name, lambda _: ExperimentState(), {}, int(time.time() * 1000))
        return Reset(name, changed is not None)

    return [reset_experiment]
