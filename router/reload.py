"""What a router that reads its config again can take over at once, and what needs a restart. Pure.

`App.reload` does what is decided here. Whatever owns a part of the config takes the new one in a
method named `use`; calls in flight keep the limits they began with.
"""

from dataclasses import dataclass

from router.config import RouterConfig
from router.config.differences import flat_differences


@dataclass(frozen=True, slots=True)
class News:
    """`config` is what to go on with; the lines are for the log."""

    config: RouterConfig
    changed: list[str]
    needs_restart: list[str]
    """Left as it was; told at every reload for as long as the file says otherwise."""


def news(running: RouterConfig, written: RouterConfig) -> News:
    """Addresses stay: the public socket may be somebody else's, and clients know it."""
    admin = written.admin.model_copy(update={"port": running.admin.port})
    if admin.port is not None and admin.token is None:
        admin = running.admin  # the port stays, and never without a token
    fixed = {"host": running.host, "port": running.port, "admin": admin}
    config = written.model_copy(update=fixed)
    return News(
        config,
        changed=list(flat_differences(running.model_dump(), config.model_dump())),
        needs_restart=list(flat_differences(config.model_dump(), written.model_dump())),
    )
