"""Every way a call can end badly, and whose fault it is.

Two families. A `RouterError` ends one call (or one attempt): its class says which HTTP status the
client sees, whether another replica may be asked (`retry`), and whether the replica's health
suffers. An `OperatorError` ends a command: `ConfigError` exits with 2, the others with 1.
Foreign exceptions (OSError, parser errors) become these at the edge: `upstream`, `config`, the
launcher's runtimes. Anything outside this table is a bug: 500 with the call's id.
"""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar


class Retry(Enum):
    """What a failed attempt allows next, as long as the client has seen nothing of the reply."""

    NEVER = "never"
    ELSEWHERE = "elsewhere"  # the replica is full: ask another, costs nothing
    SAFE = "safe"  # the replica died: head of the queue, costs no retry budget
    BUDGET = "budget"  # the call itself may be to blame: costs retry budget


class RouterError(Exception):
    """Ends a call or an attempt; the message is shown to the client and in the log."""

    status: int = 500
    error_type: str = "generation"
    retry: ClassVar[Retry] = Retry.NEVER
    hurts_health: ClassVar[bool] = False
    retry_after_s: int | None = None

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        message = message.encode("utf-8", "replace").decode()  # raw bytes of a URL stand in it
        super().__init__(message)
        self.message = message
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    def because(self, why: str) -> "RouterError":
        """The same error, with what stood in the way of helping."""
        self.message = f"{self.message}; {why}"
        return self


class InvalidRequest(RouterError):
    """The client's request cannot be served as written; the message names the field."""

    status, error_type = 422, "validation"


class BodyTooLarge(RouterError):
    """The request body is over `max_body_bytes`."""

    status, error_type = 413, "validation"


class BodyTimeout(RouterError):
    """The client did not send its whole request body in time."""

    status, error_type = 408, "validation"


class ModelNotFound(RouterError):
    """No pool serves the model the client named."""

    status, error_type = 404, "validation"


class UnknownRoute(RouterError):
    """No such path; the message lists where to look."""

    status, error_type = 404, "not_found"


class RouteNotServed(RouterError):
    """The model's engine has no such route; the message lists those it has."""

    status, error_type = 404, "not_found"


class UnsupportedMediaType(RouterError):
    """The body is not declared as JSON."""

    status, error_type = 415, "validation"


class MethodNotAllowed(RouterError):
    """The path exists, the method on it does not."""

    status, error_type = 405, "method_not_allowed"


class Unauthorized(RouterError):
    """The key is missing or wrong."""

    status, error_type = 401, "unauthorized"


class Forbidden(RouterError):
    """The key is good, but not for this."""

    status, error_type = 403, "forbidden"


class RateLimited(RouterError):
    """The key's calls, tokens or calls at a time are used up; `Retry-After` says until when."""

    status, error_type = 429, "rate_limited"


class ClientGone(RouterError):
    """The client left; nobody reads the reply. Log only (499)."""

    status, error_type = 499, "client_gone"


class QueueFull(RouterError):
    """As many calls, or bytes, wait as the queue may hold."""

    status, error_type = 429, "overloaded"


class QueueTimeout(RouterError):
    """No replica had room before the call's deadline."""

    status, error_type = 503, "overloaded"


class NoReplica(RouterError):
    """No replica serves this call and none is on its way."""

    status, error_type = 503, "overloaded"


class ShuttingDown(RouterError):
    """The router drains: it finishes what it has and takes nothing new."""

    status, error_type = 503, "overloaded"


class UpstreamShed(RouterError):
    """The replica said it is full (429, 503, or an overload event)."""

    status, error_type, retry = 429, "overloaded", Retry.ELSEWHERE


class ConnectFailed(RouterError):
    """No connection to the replica."""

    status, retry, hurts_health = 502, Retry.SAFE, True
    was_sent: bool = False
    """The call had gone out on a connection kept from before: the replica may have died of it."""


class ConnectTimeout(ConnectFailed):
    """The replica did not accept the connection in time: full, stopped or unreachable."""


class ReplicaLoading(ConnectFailed):
    """The replica's server answers, but has no model yet: as good as not listening."""

    status, error_type = 503, "overloaded"


class NoSockets(RouterError):
    """This machine gave the router no socket: nothing a replica could help."""

    status, error_type = 503, "overloaded"
    retry_after_s = 1


class UpstreamTimeout(RouterError):
    """The replica took too long in the phase the message names."""

    status, retry, hurts_health = 504, Retry.BUDGET, True


class ReplicaSilent(UpstreamTimeout):
    """The replica says nothing at all, to a probe neither: as good as dead, whoever is to blame."""

    retry = Retry.SAFE


class UpstreamBroken(RouterError):
    """What came over the connection is not a whole reply."""

    status, error_type, retry, hurts_health = 502, "incomplete_generation", Retry.BUDGET, True


class ReplicaLost(UpstreamBroken):
    """The connection was lost inside the reply, or before it: the replica died."""

    retry = Retry.SAFE


class UpstreamRefusal(RouterError):
    """The replica refused the call for what it asks (4xx); told as it said it."""

    def __init__(self, message: str, *, status: int, error_type: str) -> None:
        super().__init__(message)
        self.status, self.error_type = status, error_type  # the replica's own, as sent


class CallTimeout(RouterError):
    """The call's own deadline passed while a replica worked on it; nobody is to blame."""

    status = 504


class UpstreamFault(RouterError):
    """The replica answered that it failed (424, 5xx, or an error event); passed on as sent."""

    retry, hurts_health = Retry.BUDGET, True

    def __init__(self, message: str, *, status: int = 424, error_type: str = "generation") -> None:
        super().__init__(message)
        self.status, self.error_type = status, error_type  # the replica's own, as sent


class PoisonCall(RouterError):
    """The call was in flight at so many replica deaths that it is refused."""

    status, error_type = 422, "validation"


class OperatorError(Exception):
    """Ends a command; `exit_code` is the process's."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong in a config: where, what was found and what was expected."""

    file: str
    line: int | None
    path: str
    found: str
    expected: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line is not None else self.file
        path = f"{self.path}: " if self.path else ""
        return f"{place}: {path}found {self.found}, expected {self.expected}"


class ConfigError(OperatorError):
    """The config cannot be used; carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: list[ConfigProblem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class DeviceError(OperatorError):
    """A device the config names is not there or not usable."""


class PlacementError(OperatorError):
    """The replicas do not fit on the devices."""


class StartError(OperatorError):
    """A replica, or the router, could not be started.

    `recoverable`: trying again may help; `is_slow`: but not soon, somebody has to see to it first.
    """

    def __init__(self, message: str, *, recoverable: bool = True, is_slow: bool = False) -> None:
        super().__init__(message)
        self.recoverable = recoverable
        self.is_slow = is_slow


class RuntimeAway(OperatorError):
    """What runs the replicas (the Docker Engine) does not answer; nothing is known of them."""


class StopError(OperatorError):
    """A replica, or the router, could not be stopped."""


class StateError(OperatorError):
    """The cluster's state folder is in use, unreadable or from another version."""
