"""What the steps of one call share, from its admission to its last word."""

from functools import partial
from math import inf
from typing import NamedTuple

from router.call import Call
from router.config import ResumeConfig, RouterConfig
from router.dispatcher import Dispatcher
from router.edge import Client
from router.errors import CallTimeout, RouterError, UpstreamTimeout
from router.exchange import Exchange, Limit
from router.lease import Lease
from router.pool import Pool
from router.record import Record
from router.relay import Relay, StreamOpener
from router.request_queue import Ticket
from router.resume import Ledger, NotResumable, Seam, Transcript
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


class Waiting(NamedTuple):
    """A call without a replica, for its turn."""

    ticket: Ticket
    service: Service | None
    """For a stream."""


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


def made(
    call: Call, dispatcher: Dispatcher, client: Client, record: Record, config: RouterConfig
) -> Service:
    """With nothing done yet."""
    opener = StreamOpener(record, client, config.timeouts.stream_open_after_s)
    relay = Relay(client, Ledger(partial(_transcript, call, dispatcher.pool, config.resume)))
    return Service(call, dispatcher, client, record, opener, relay, config)


def limit_of(service: Service, now_s: float) -> Limit:
    """When it is too late for a reply to what is sent now."""
    call = service.call
    first_s = service.config.timeouts.first_event_s if call.ask.stream else None
    if first_s is not None and now_s + first_s < call.deadline_s:
        words = f"the replica sent no event within {first_s:g} s"
        return now_s + first_s, partial(UpstreamTimeout, words)
    return call.deadline_s, out_of_time


def out_of_time() -> RouterError:
    return CallTimeout("the call's deadline passed before its answer")


def doubt_at_s(lease: Lease, now_s: float) -> float:
    """When a stream's first event is later than this replica's ever are."""
    if not lease.call.ask.stream:
        return inf
    return now_s + lease.replica.pace.first_token_deadline_s(lease.cost.input_tokens, now_s)


def _transcript(call: Call, pool: Pool, config: ResumeConfig) -> Transcript:
    """Raises NotResumable."""
    if not config.enabled:
        raise NotResumable("that is switched off (router.resume.enabled)")
    return pool.dialect.transcript(call, pool.info, seeded=config.seeded)
