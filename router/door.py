"""Who may use the operators' routes, whether or not the plugin `auth` guards the others."""

from collections.abc import Callable, Sequence
from typing import Self

from router.call import Credentials, Principal
from router.errors import AuthenticationFailed, PermissionDenied
from router.plugin import Authenticator


class Door:
    """Asks each authenticator in turn: that of the plugins if there is one, and one that knows the admin keys."""

    def __init__(self, first: Authenticator, *others: Authenticator) -> None:
        authenticators = (first, *others)
        self._authenticators: Callable[[], Sequence[Authenticator]] = lambda: authenticators

    @classmethod
    def of(cls, authenticators: Callable[[], Sequence[Authenticator]]) -> Self:
        """One that asks whoever they are at the time; there is always one."""
        door = cls.__new__(cls)
        door._authenticators = authenticators
        return door

    async def caller(self, credentials: Credentials) -> Principal:
        """Whoever any of them knows. Raises the first one's `AuthenticationFailed` when none does."""
        refused: AuthenticationFailed | None = None
        for authenticator in self._authenticators():
            try:
                return await authenticator.authenticate(credentials)
            except AuthenticationFailed as error:
                refused = refused or error
        assert refused is not None
        raise refused

    async def admin(self, credentials: Credentials) -> Principal:
        """Raises `AuthenticationFailed`, and `PermissionDenied` for a key that is no admin key."""
        principal = await self.caller(credentials)
        if not principal.admin:
            raise PermissionDenied(
                f"the key `{principal.name}` may not do this: it takes an admin key", code="admin_key_required"
            )
        return principal
