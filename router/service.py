"""What the steps of one call share, from its admission to its last word."""

from dataclasses import dataclass, field

from router.call import Call
from router.config import RouterConfig
from router.dispatcher import Dispatcher
from router.edge import Client
from router.exchange import Exchange, Limit
from router.lease import Lease
from router.record import Record
from router.relay import Relay, StreamOpener
from router.resume import Seam, Transcript
from router.retry import Attempts


@dataclass(slots=True)
class Service:
    """One call being served."""

    call: Call
    dispatcher: Dispatcher
    client: Client
    record: Record
    opener: StreamOpener
    relay: Relay
    wish: Call
    """What is asked of the next replica: the call, or the rest of its answer."""
    config: RouterConfig
    """Of the time when the call came: what is reloaded since is for later ones."""
    attempts: Attempts = field(default_factory=Attempts)
    broken: Transcript | None = None
    """What the client has of an answer that broke off, to be continued."""
    events_before: int = 0
    """Events the client had when the attempt began."""

    @property
    def fresh_events(self) -> int:
        """Events that the attempt has brought."""
        return self.relay.events - self.events_before


@dataclass(frozen=True, slots=True)
class Started:
    """A request that a replica has; its reply may be ready to be judged, or in doubt."""

    lease: Lease
    exchange: Exchange
    seam: Seam | None
    """Joins the reply to what the client has; None for the answer's beginning."""
    limit: Limit
    """When it is too late for a reply, and what that means."""
