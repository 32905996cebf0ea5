"""What the steps of one call share, from its admission to its last word."""

from typing import NamedTuple

from router.call import Call
from router.config import RouterConfig
from router.dispatcher import Dispatcher
from router.edge import Client
from router.errors import RouterError
from router.exchange import Exchange, Limit
from router.lease import Lease
from router.record import Record
from router.relay import Relay, StreamOpener
from router.resume import Seam, Transcript
from router.retry import Attempts


class Service:
    """One call being served."""

    broken: Transcript | None = None
    """What the client has of an answer that broke off, to be continued."""
    events_before = 0
    """Events the client had when the attempt began."""
    first_token_s = 0.0
    """How long the attempt that is being relayed took to its first event."""

    def __init__(
        self,
        call: Call,
        dispatcher: Dispatcher,
        client: Client,
        record: Record,
        opener: StreamOpener,
        relay: Relay,
        config: RouterConfig,
    ) -> None:
        """`config` of the time when the call came: what is reloaded since is for later ones."""
        self.call = call
        self.dispatcher = dispatcher
        self.client = client
        self.record = record
        self.opener = opener
        self.relay = relay
        self.config = config
        self.attempts = Attempts()
        self.wish = call
        """What is asked of the next replica: the call, or the rest of its answer."""

    @property
    def fresh_events(self) -> int:
        """Events that the attempt has brought."""
        return self.relay.events - self.events_before


class Begun(NamedTuple):
    """How far a call has come without waiting for anything."""

    lease: Lease
    started: "Started | None"
    service: Service | None
    """For a stream."""
    failure: RouterError | None = None
    """Why there is no connection."""


class Started(NamedTuple):
    """A request that a replica has; its reply may be ready to be judged, or in doubt."""

    lease: Lease
    exchange: Exchange
    seam: Seam | None
    """Joins the reply to what the client has; None for the answer's beginning."""
    limit: Limit
    """When it is too late for a reply, and what that means."""
