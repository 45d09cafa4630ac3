"""`/admin/config`: which configuration is in force, what another would change, and taking it up. For admin keys."""

from datetime import UTC, datetime
from typing import Any, Final

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from router.config import ConfigError
from router.differences import Change
from router.door import Door
from router.errors import InvalidRequest
from router.http.described import described
from router.http.json_body import json_body
from router.http.receipts import readable
from router.http.request import read_head
from router.reloading import Reloader
from router.store.instances import Instance

_PATIENCE: Final = 5.0
"""Seconds that a reload waits for the other processes."""


class InstanceShown(Struct, frozen=True, kw_only=True):
    """One process of this gateway."""

    id: str
    host: str
    pid: int
    version: str
    generation: str
    since: str
    """When that came into force there."""
    seen: str
    error: str | None
    """Why it has not taken up what its file says."""
    here: bool
    """Whether it is the one that answers."""
    behind: bool
    """Whether it has not looked at its file since the last reload."""


class ConfigShown(Struct, frozen=True, kw_only=True):
    generation: str
    """The same twelve digits wherever the files are the same."""
    since: str
    file: str | None
    """Null: the defaults, without a file."""
    watch: bool
    error: str | None
    """Why this process has not taken up what its file says."""
    instances: list[InstanceShown]


class PlanBody(Struct, frozen=True, forbid_unknown_fields=True):
    text: str | None = None
    """A configuration, to be read as if it stood in the gateway's file; without it the file itself is read."""


class ProblemShown(Struct, frozen=True):
    file: str
    line: int
    column: int
    message: str


class PlanShown(Struct, frozen=True, kw_only=True):
    generation: str
    would_be: str | None
    """Null: it would be refused."""
    changes: list[Change]
    refused: list[ProblemShown]


class ReloadShown(Struct, frozen=True, kw_only=True):
    generation: str
    changed: bool
    """Whether this process has something new in force."""
    announced: bool
    """Whether the others could be told."""
    instances: list[InstanceShown]


def config_routes(reloader: Reloader, door: Door) -> list[HTTPRouteHandler]:
    """The handlers. They need an admin key, whatever the list of plugins says."""

    def shown(found: list[Instance], number: int | None = None) -> list[InstanceShown]:
        latest = max((each.wanted for each in found), default=0) if number is None else number
        return [_instance(each, reloader.id, latest) for each in found]

    @get("/admin/config", summary="Tell which configuration is in force", tags=["configuration"])
    async def show_config(request: Request[Any, Any, Any]) -> ConfigShown:
        await door.admin(read_head(request.scope).credentials)
        with readable():
            found = await reloader.instances()
        current = reloader.generations.current
        return ConfigShown(
            generation=current.id,
            since=_instant(reloader.since),
            file=reloader.file,
            watch=current.config.server.watch,
            error=reloader.error,
            instances=shown(found),
        )

    @post(
        "/admin/config/plan",
        summary="Tell in words what a configuration would change",
        tags=["configuration"],
        status_code=200,
        operation_class=described(PlanBody),
    )
    async def plan_config(request: Request[Any, Any, Any]) -> PlanShown:
        """Nothing is changed."""
        await door.admin(read_head(request.scope).credentials)
        plan = await reloader.plan((await json_body(request, PlanBody)).text)
        return PlanShown(
            generation=plan.generation,
            would_be=plan.would_be,
            changes=plan.changes,
            refused=[ProblemShown(each.file, each.line, each.column, each.message) for each in plan.refused],
        )

    @post(
        "/admin/config/reload",
        summary="Take up what the configuration's file says",
        tags=["configuration"],
        status_code=200,
    )
    async def reload_config(request: Request[Any, Any, Any]) -> ReloadShown:
        """All of it or, when anything in it is wrong, nothing. Running calls end under what they began with."""
        await door.admin(read_head(request.scope).credentials)
        try:
            changed, number = await reloader.reload()
        except ConfigError as error:
            raise InvalidRequest(
                f"the configuration was not taken up, what was in force stays so:\n{error}",
                code="invalid_configuration",
            ) from None
        found: list[Instance] = []
        if number is not None:
            with readable():
                found = await reloader.followed(number, _PATIENCE)
        return ReloadShown(
            generation=reloader.generations.current.id,
            changed=changed,
            announced=number is not None,
            instances=shown(found, number),
        )

    return [show_config, plan_config, reload_config]


def _instance(found: Instance, here: str, latest: int) -> InstanceShown:
    return InstanceShown(
        id=found.id,
        host=found.host,
        pid=found.pid,
        version=found.version,
        generation=found.generation,
        since=_instant(found.since),
        seen=_instant(found.seen_at),
        error=found.error,
        here=found.id == here,
        behind=found.wanted < latest,
    )


def _instant(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
