"""Which plugin has which name. Plugins are imported on first use.

A plugin of your own needs no change here: it is found under the entry-point group `deltaway.plugins` of any installed
package, or is named in the configuration as `package.module:Class`. `docs/sample-plugin/` is one.
"""

from typing import Final, cast

from router.extension import Extensions
from router.plugin import Plugin

BUILT_IN: Final[dict[str, str]] = {
    "auth": "plugins.auth:Auth",
    "budget": "plugins.budget:BudgetPlugin",
    "cache": "plugins.cache:CachePlugin",
    "limits": "plugins.limits:LimitsPlugin",
    "logging": "plugins.logging:Logging",
    "usage": "plugins.usage:UsagePlugin",
}
GROUP: Final = "deltaway.plugins"


def known_plugins() -> tuple[str, ...]:
    """The names `load_plugin` knows, sorted."""
    return _extensions().known()


def load_plugin(name: str) -> type[Plugin]:
    """The plugin of that name, or at `package.module:Class`. Raises `UnknownExtension` or `ExtensionNotFound`."""
    return cast("type[Plugin]", _extensions().load(name))


def _extensions() -> Extensions:
    return Extensions("plugin", GROUP, BUILT_IN)
