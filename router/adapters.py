"""A provider's row becomes an adapter: its protocol with its keys, and what carries the bytes."""

import ssl

from router.config import ConfigError, Document
from router.dispatch import Adapter
from router.provider import InProcess, Provider, ProviderSettings
from router.settings import ProviderRow
from router.upstream import CarrierFactory, HttpUpstream, InProcessUpstream, Upstream


def build_adapter(
    row: ProviderRow, cls: type[Provider], document: Document, context: ssl.SSLContext, carrier: CarrierFactory
) -> Adapter | None:
    """None for a row that lacks a variable; what it does say is checked all the same. Raises `ConfigError`."""
    path = ("providers", row.name)
    options = document.convert((*path, "options"), cls.Options)
    if row.missing:
        return None
    base_url = row.base_url or cls.base_url
    if base_url is None:
        message = f"the protocol `{row.protocol}` has no address of its own: write `base_url`"
        raise ConfigError((document.problem(path, message),))
    settings = ProviderSettings(
        name=row.name, base_url=base_url, api_key=next(iter(row.api_keys), None), headers=row.headers, options=options
    )
    provider = cls(settings)
    upstream: Upstream
    if isinstance(provider, InProcess):
        upstream = InProcessUpstream(row.name, provider)
    else:
        upstream = HttpUpstream(row.name, carrier(row.transport, context), row.max_parallel)
    return Adapter(provider, upstream)
