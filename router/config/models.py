"""The router's options: each field states its meaning, unit, default and trap.

`RouterConfig` is the `router:` section of a cluster config; `RouterFile` is a config for the router
alone (`router --config FILE`), and takes a cluster config as well, reading what concerns it.
"""

import ipaddress
from collections.abc import Iterator
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

from router.config.mismatch import Mismatch, refuse

Policy = Literal[
    "expected_finish",
    "least_tokens",
    "least_requests",
    "round_robin",
    "power_of_two",
    "prefix_affinity",
]
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
    warm_up: bool = Field(
        True,
        description="Whether a replica that starts or comes back must first answer a call of one "
        "token; until then it is used only if no other is there.",
    )
    warm_up_timeout_s: Seconds = Field(
        120.0, description="That call. An engine's first one may compile its kernels."
    )
    canary_idle_s: float = Field(
        30.0,
        ge=0,
        description="After so long without a call a replica gets one of one token, and again each "
        "time; when it fails it counts as any failed call. 0: never.",
    )
    slow_start: bool = Field(
        True,
        description="Whether a replica that comes back while others serve takes few calls first, "
        "and doubles them as they are answered.",
    )
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


class ResumeConfig(StrictModel):
    """Streams whose replica fails in mid-answer: another one continues them, unseen."""

    enabled: bool = Field(
        True, description="Whether they are; else they end in an error event, as all others do."
    )
    seeded: bool = Field(
        False,
        description="Also calls that are sampled with a seed of the client's own: what follows is "
        "another draw, so that the same seed no longer gives the same text.",
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


class KeyConfig(StrictModel):
    """Who holds the key with this hash, and what it may do. Keys of one name share their limits."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
        description="Whose it is: stands in the log and the metrics. Keys may share a name while "
        "one takes the place of the other.",
    )
    hash: str = Field(
        pattern=r"^sha256:[0-9a-f]{64}$",
        repr=False,
        description="SHA-256 of the key; `launcher key NAME` makes a key and prints its hash.",
    )
    tenant: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
        description="On whose account its calls wait in the queue; default: its name.",
    )
    requests_per_minute: int | None = Field(
        None, ge=1, description="Calls a minute, a minute's worth at once at most; default: any."
    )
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="Tokens a minute, prompt and answer; a minute's worth may be spent at once. "
        "Counted by estimate when a call comes, by what the engine reports when it ends. A call "
        "that needs more than all of it gets in when nothing is used, and is paid off afterwards; "
        "default: any.",
    )
    max_concurrent: int | None = Field(None, ge=1, description="Calls at a time; default: any.")
    models: list[str] | None = Field(
        None,
        min_length=1,
        description="Models it may use, by the names that /v1/models shows; default: all. It sees "
        "no others. TGI's adapters count as their model.",
    )


class TlsConfig(StrictModel):
    """HTTPS on the public port, TLS 1.2 and newer, instead of plain HTTP."""

    certificate: str = Field(
        description="File with the certificate, PEM, and those that lead to its authority behind "
        "it. An absolute path."
    )
    key: str = Field(
        repr=False, description="File with its private key, PEM, not encrypted. An absolute path."
    )

    @field_validator("certificate", "key")
    @classmethod
    def a_path(cls, value: str) -> str:
        if not value.startswith("/") or "\n" in value:
            raise ValueError("the absolute path of a PEM file")
        return value


class LimitsConfig(StrictModel):
    """What one client may cost before its call is even read; see also max_body_bytes and
    timeouts.body_s, timeouts.idle_s."""

    head_bytes: int = Field(
        65_536, ge=1024, description="Largest request head, in bytes; larger ones get 431."
    )
    head_fields: int = Field(128, ge=8, description="Most fields of a request head.")
    head_s: Seconds = Field(
        10.0,
        description="Sending a whole request head once it has begun, and the TLS handshake, in "
        "seconds.",
    )
    connections: int = Field(65_536, ge=1, description="Connections at a time, of all clients.")
    connections_per_client: int = Field(
        16_384,
        ge=1,
        description="Connections at a time from one address (IPv6: one /64). Behind a proxy all "
        "clients have the proxy's.",
    )


class RouterConfig(StrictModel):
    """The endpoint: where it listens, how it chooses, what it refuses."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    policy: Policy = Field("expected_finish", description="How a replica with room is chosen.")
    queue: QueueConfig = QueueConfig()
    tenants: dict[TenantName, TenantConfig] = Field(
        default={},
        description="Tenants with a weight of their own, by name; '' stands for calls that name "
        "none. Others need no entry.",
    )
    timeouts: TimeoutConfig = TimeoutConfig()
    health: HealthConfig = HealthConfig()
    retries: RetryConfig = RetryConfig()
    resume: ResumeConfig = ResumeConfig()
    admin: AdminConfig = AdminConfig()
    limits: LimitsConfig = LimitsConfig()
    tls: TlsConfig | None = Field(
        None, description="HTTPS on the public port; default: plain HTTP."
    )
    keys: list[KeyConfig] = Field(
        default=[],
        description="Who may call. Without any, everybody who reaches the endpoint may.",
    )
    max_body_bytes: int = Field(
        32 * 1024**2, ge=1024, description="Largest request body, in bytes; larger ones get 413."
    )
    cors_allow_origin: list[str] = Field(
        default=["*"], description="Origins that browsers may call from."
    )
    log_calls: bool = Field(True, description="One JSON line per finished call on standard output.")
    engine_api_key: str | None = Field(
        None,
        pattern=r"^[\x21-\x7e]*$",
        repr=False,
        description="Sent to replicas as a bearer token. Write ${NAME} to keep it out of the file.",
    )

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    @field_validator("keys")
    @classmethod
    def each_key_once(cls, keys: list[KeyConfig]) -> list[KeyConfig]:
        """A hash belongs to one name, and what a name may do is said once, or alike."""
        refuse(_key_mismatches(keys))
        return keys


def _key_mismatches(keys: list[KeyConfig]) -> Iterator[Mismatch]:
    hashes: dict[str, int] = {}
    owners: dict[str, tuple[int, KeyConfig]] = {}
    for position, key in enumerate(keys):
        if (first := hashes.setdefault(key.hash, position)) != position:
            found = f"the hash of keys[{first}] again"
            yield Mismatch((position, "hash"), found, "each key once")
        other, owner = owners.setdefault(key.name, (position, key))
        for field in KeyConfig.model_fields:
            if field != "hash" and getattr(key, field) != getattr(owner, field):
                expected = f"what keys[{other}] of the same name says"
                yield Mismatch((position, field), str(getattr(key, field)), expected)


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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; other names than localhost may be anybody's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_base_url(url: str) -> str:
    """A replica's base URL without a trailing slash; ValueError says what is wrong with it."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.port == 0:
        raise ValueError("a base URL like http://HOST:PORT")
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("a base URL without path, query or credentials, like http://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"http://{host}:{parts.port or 80}"
