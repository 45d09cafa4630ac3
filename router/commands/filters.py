"""The options that say which calls are meant, for every command that asks the ledger."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import rich_click as click

Command = TypeVar("Command", bound=Callable[..., Any])
# the names end in _ where the parameter of HTTP is a word of Python, or another option's
_OPTIONS: Final = (
    click.option("--from", "from_", metavar="TIME", help="From this day, month or time on (UTC)."),
    click.option("--to", "to", metavar="TIME", help="Up to this day or month, or before this time (UTC)."),
    click.option("--model", help="Calls that asked for this name."),
    click.option("--route", help="Calls that asked for this route."),
    click.option("--key-id", "key_", metavar="ID", help="Calls of this key, by its id (dw-…)."),
    click.option("--user", help="Calls for this user."),
    click.option("--team", help="Calls of this team's keys."),
    click.option("--provider", help="Calls at this provider."),
    click.option("--target", help="Calls at this provider/model."),
    click.option("--outcome", help="Calls that ended so; several with commas."),
    click.option("--tag", multiple=True, metavar="NAME=VALUE", help="Calls with this tag. Repeatable."),
    click.option("--experiment", help="Calls in this experiment."),
    click.option("--arm", help="Calls in this arm of an experiment."),
)


def filter_options(command: Command) -> Command:
    """Adds the options. Their values come as keywords that `router.commands.words.path` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
