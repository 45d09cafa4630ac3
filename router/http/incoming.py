"""A decoded request with its headers becomes a call."""

from router.call import Call, Trip
from router.dialect import Asked
from router.http.request import Head, Scope


def incoming(dialect: str, call_id: str, trip: Trip, asked: Asked, head: Head, scope: Scope) -> Call:
    request = asked.request
    trip.asked = request.model
    client = scope.get("client")
    tags = {**request.metadata, **head.tags} if head.tags else request.metadata
    return Call(
        id=call_id,
        request=request,
        dialect=dialect,
        trip=trip,
        credentials=head.credentials,
        user=head.user or request.user,
        tags=tags,
        conversation=asked.conversation or head.conversation,
        regions=head.regions,
        forced=head.forced,
        origin=client[0] if client else "",
        cache_control=head.cache_control,
    )
