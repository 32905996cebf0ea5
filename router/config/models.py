"""The router's options: each field states its meaning, unit, default and trap.

`RouterConfig` is the `router:` section of a cluster config; `RouterFile` is a config for the router
alone (`router --config FILE`), and takes a cluster config as well, reading what concerns it.
"""

from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Policy = Literal["least_tokens", "least_requests", "round_robin", "power_of_two", "prefix_affinity"]
DialectName = Literal["tgi", "openai"]
PriorityName = Literal["high", "normal", "low"]
TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:@/-]{0,64}$")]
HeaderName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _types_in(annotation: Any) -> set[Any]:
    """The plain types of `int | None`, `Annotated[float, ...]` and the like."""
    inner = get_args(annotation)
    return set().union(*map(_types_in, inner)) if inner else {annotation}


class StrictModel(BaseModel):
    """Refuses keys it does not know and values that would have to be guessed at."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`port: on` is a slip, not port 1."""
        if isinstance(value, bool) and info.field_name is not None:
            types = _types_in(cls.model_fields[info.field_name].annotation)
            if bool not in types and types & {int, float}:
                raise ValueError("a whole number" if int in types else "a number")
        return value


class ShorthandModel(StrictModel):
    """May be written as a plain text, which stands for the key that `shorthand` names."""

    shorthand: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def text_alone(cls, value: Any) -> Any:
        """`engine: tgi` is `engine: {name: tgi}`."""
        return {cls.shorthand: value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        full = handler(core_schema)
        key = handler.resolve_ref_schema(full)["properties"][cls.shorthand]
        text = {name: key[name] for name in key if name not in ("default", "title")}
        return {"anyOf": [full, text]}


class QueueConfig(StrictModel):
    """How many calls may wait, and for how long."""

    max_calls: int | None = Field(
        None, ge=0, description="Waiting calls per pool; default: 4 x the slots known, at least 64."
    )
    max_bytes: int = Field(
        512 * 1024**2, ge=0, description="Request bodies held by waiting calls, per pool, in bytes."
    )
    timeout_s: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="Longest wait for a replica, in seconds; 0 refuses at once when none has room.",
    )
    max_overtake_s: float = Field(
        2.0,
        ge=0,
        le=3_600,
        description="How long smaller calls may pass one that does not fit yet, in seconds.",
    )
    tenant_header: HeaderName | None = Field(
        "x-fleet-tenant",
        description="Header field that names a call's tenant; null: all calls are one tenant's. "
        "Anybody can write it: let clients reach the router only through what sets it for them.",
    )


class TenantConfig(StrictModel):
    """One of those who share the fleet."""

    weight: float = Field(
        1.0,
        ge=0.01,
        le=100,
        description="Its share of tokens and of waiting places, next to the 1 of those not named.",
    )
    max_priority: PriorityName = Field(
        "high", description="The most urgent it may be: calls that ask for more wait as this."
    )


class TimeoutConfig(StrictModel):
    """Deadlines of one call, in seconds."""

    total_s: Seconds = Field(1800.0, description="Whole call, waiting and retries included.")
    connect_s: Seconds = Field(5.0, description="Opening a connection to a replica.")
    first_event_s: Seconds | None = Field(
        None,
        description="To the first event of an attempt; off unless set, as prefill can be slow.",
    )
    between_events_s: Seconds = Field(60.0, description="Silence inside a stream.")
    body_s: Seconds = Field(30.0, description="Receiving a client's whole body.")
    idle_s: Seconds = Field(
        75.0, description="Silence on a client's connection between calls, or before a whole head."
    )
    stream_open_after_s: Seconds = Field(
        10.0, description="Silence after which a waiting stream gets its head and comments."
    )
    drain_s: float = Field(90.0, ge=0, description="Finishing calls in flight after SIGTERM.")


class HealthConfig(StrictModel):
    """Probing and ejection."""

    interval_s: Seconds = Field(5.0, description="Between two probes of a healthy replica.")
    timeout_s: Seconds = Field(3.0, description="One probe. Engines answer slowly under load.")
    fall: int = Field(3, ge=1, description="Failed probes in a row that make it unhealthy.")
    rise: int = Field(2, ge=1, description="Passed probes in a row that make it healthy again.")
    eject_after: int = Field(5, ge=1, description="Failed calls in a row that eject a replica.")
    eject_base_s: Seconds = Field(10.0, description="First ejection; doubles each time.")
    eject_max_s: Seconds = Field(60.0, description="Longest ejection.")
    max_ejected_share: float = Field(
        0.5, ge=0, le=1, description="Share of a pool that may be ejected; never the last replica."
    )


class RetryConfig(StrictModel):
    """Unseen retries before the client has received anything."""

    max_attempts: int = Field(3, ge=1, le=10, description="Attempts that cost budget, per call.")
    budget_share: float = Field(
        0.2, ge=0, le=1, description="Retries allowed per call served (faults and time-outs only)."
    )
    max_deaths: int = Field(
        2, ge=1, description="Replica deaths with this call in flight before it is tried alone."
    )


class AdminConfig(StrictModel):
    """The admin API: on a unix socket in the state folder, and on a loopback port if wanted."""

    port: int | None = Field(
        None, ge=0, le=65_535, description="Loopback port; off by default. 0 takes a free one."
    )
    token: str | None = Field(
        None,
        min_length=16,
        repr=False,
        description="Bearer token for the port, at least 16 characters. Write ${NAME}.",
    )

    @model_validator(mode="after")
    def port_needs_token(self) -> "AdminConfig":
        if self.port is not None and self.token is None:
            raise ValueError("a token beside the port, as anybody on the machine can reach it")
        return self


class RouterConfig(StrictModel):
    """The endpoint: where it listens, how it chooses, what it refuses."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    policy: Policy = Field("least_tokens", description="How a replica with room is chosen.")
    queue: QueueConfig = QueueConfig()
    tenants: dict[TenantName, TenantConfig] = Field(
        default={},
        description="Tenants with a weight of their own, by name; '' stands for calls that name "
        "none. Others need no entry.",
    )
    timeouts: TimeoutConfig = TimeoutConfig()
    health: HealthConfig = HealthConfig()
    retries: RetryConfig = RetryConfig()
    admin: AdminConfig = AdminConfig()
    max_body_bytes: int = Field(
        32 * 1024**2, ge=1024, description="Largest request body, in bytes; larger ones get 413."
    )
    cors_allow_origin: list[str] = Field(
        default=["*"], description="Origins that browsers may call from."
    )
    log_calls: bool = Field(True, description="One JSON line per finished call on standard output.")
    engine_api_key: str | None = Field(
        None,
        repr=False,
        description="Sent to replicas as a bearer token. Write ${NAME} to keep it out of the file.",
    )


class ReplicaConfig(ShorthandModel):
    """One replica the router is told of by hand. A plain text is its URL."""

    shorthand: ClassVar[str] = "url"

    url: str = Field(description="Base URL, for example http://10.0.0.7:8080.")
    id: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    model: str = Field(
        "default",
        min_length=1,
        description="Pool this replica belongs to. As request bodies go to the engine unchanged, "
        "vLLM must serve the model under this name.",
    )
    dialect: DialectName | None = Field(
        None,
        description="What it speaks: tgi, or openai for vLLM, Aphrodite and llama-server; "
        "default: what --dialect says, else tgi. One for all replicas of a model.",
    )
    max_requests: int | None = Field(None, ge=1, description="Calls at a time; default: learned.")
    max_tokens: int | None = Field(None, ge=1, description="Tokens at a time; default: learned.")

    @field_validator("url")
    @classmethod
    def plain_http(cls, url: str) -> str:
        return parse_base_url(url)


class RouterFile(StrictModel):
    """A config for the router alone: `router --config FILE`.

    A whole cluster config is taken too: the launcher's sections are accepted and not looked at.
    """

    router: RouterConfig = RouterConfig()
    replicas: list[ReplicaConfig] = []
    cluster: Any = Field(None, description="Read by the launcher only.")
    models: Any = Field(None, description="Read by the launcher only.")
    engine: Any = Field(None, description="Read by the launcher only.")
    runtime: Any = Field(None, description="Read by the launcher only.")


def parse_base_url(url: str) -> str:
    """A replica's base URL without a trailing slash; ValueError says what is wrong with it."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.port == 0:
        raise ValueError("a base URL like http://HOST:PORT")
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("a base URL without path, query or credentials, like http://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"http://{host}:{parts.port or 80}"
