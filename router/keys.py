"""Who calls, and how much they may: API keys, and what is left of their limits.

A key is 256 random bits, which nobody finds by trying, so one SHA-256 hides it as well as a slow
hash would, and costs a microsecond a call. What is looked up is the hash: how long that takes says
nothing of the key, as nobody can choose a hash. Keys themselves are never stored, logged or shown.

One store per router, on one event loop. `replace` takes a new list while calls run; who stays
keeps what was used. Without any key in it everybody is let in, unlimited.
"""

import hmac
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from math import ceil
from types import TracebackType
from typing import Self

from router.allowance import Allowance
from router.call import Cost
from router.config import KeyConfig, RouterConfig
from router.drain_rate import DrainRate
from router.errors import ClientGone, RateLimited, RouterError, Unauthorized
from router.record import Record

BEARER = "bearer "
NO_DIGEST = bytes(32)


class Account:
    """What one name may do, and what it has used. Written by its permits, and by `replace`."""

    __slots__ = (
        *("finishing", "max_concurrent", "models", "name", "requests"),
        *("running", "tenant", "tokens"),
    )

    def __init__(self, name: str, now_s: float) -> None:
        self.name = self.tenant = name
        self.models: frozenset[str] | None = None
        """None: all of them."""
        self.max_concurrent: int | None = None
        self.requests: Allowance | None = None
        self.tokens: Allowance | None = None
        self.running = 0
        self.finishing = DrainRate(now_s)

    def follow(self, config: KeyConfig, now_s: float) -> None:
        """What the config says from now on; what was used stays used."""
        self.tenant = config.tenant or config.name
        self.models = None if config.models is None else frozenset(config.models)
        self.max_concurrent = config.max_concurrent
        self.requests = _changed(self.requests, config.requests_per_minute, now_s)
        self.tokens = _changed(self.tokens, config.tokens_per_minute, now_s)


class KeyStore:
    def __init__(
        self,
        keys: Iterable[KeyConfig],
        clock: Callable[[], float],
        refused: Callable[[str, str], None] = lambda name, limit: None,
    ) -> None:
        """`refused` is told whose call which limit turned away."""
        self._clock = clock
        self._refused = refused
        self._anybody = Account("", clock())
        self._accounts: dict[str, Account] = {}
        self._by_digest: dict[bytes, tuple[bytes, Account]] = {}
        self.replace(keys)

    def use(self, config: RouterConfig) -> None:
        self.replace(config.keys)

    def replace(self, keys: Iterable[KeyConfig]) -> None:
        """From now on these are the keys; calls that run are finished."""
        now_s = self._clock()
        before, self._accounts, self._by_digest = self._accounts, {}, {}
        for key in keys:
            account = self._accounts.get(key.name) or before.get(key.name)
            account = account or Account(key.name, now_s)
            account.follow(key, now_s)
            self._accounts[key.name] = account
            digest = bytes.fromhex(key.hash.removeprefix("sha256:"))
            self._by_digest[digest] = (digest, account)

    @property
    def is_open(self) -> bool:
        """No key is asked for."""
        return not self._by_digest

    def account(self, headers: Mapping[str, str]) -> Account:
        """Who sent these header fields. Raises Unauthorized."""
        if self.is_open:
            return self._anybody
        given = _given(headers)
        digest = sha256(given.encode("utf-8", "surrogateescape")).digest()
        known, account = self._by_digest.get(digest, (NO_DIGEST, self._anybody))
        if hmac.compare_digest(known, digest):
            return account
        found = "the API key is wrong" if given else "an API key is missing"
        raise Unauthorized(f"{found}; send Authorization: Bearer KEY, or x-api-key: KEY")

    def admit(self, headers: Mapping[str, str], record: Record) -> "Permit":
        """The right to make one call. Raises Unauthorized or RateLimited."""
        account = self.account(headers)
        record.account, record.tenant = account.name, account.tenant
        now_s = self._clock()
        most = account.max_concurrent
        if most is not None and account.running >= most:
            ahead = account.running - most + 1
            seconds = account.finishing.retry_after_s(ahead, now_s, unknown_s=1)
            raise self._limited(account, "concurrency", f"has {most} calls running", seconds)
        if account.requests is not None:
            if wait_s := account.requests.wait_s(1, now_s):
                used = f"has made its {account.requests.per_minute} calls of this minute"
                raise self._limited(account, "requests", used, wait_s)
            account.requests.take(1, now_s)
        account.running += 1
        return Permit(account, record, self)

    def charge(self, permit: "Permit", cost: Cost) -> None:
        """Takes what the call is expected to use. Raises RateLimited; then it cost no call."""
        account, now_s = permit.account, self._clock()
        if account.tokens is None:
            return
        estimate = cost.input_tokens + cost.expected_tokens
        if wait_s := account.tokens.wait_s(estimate, now_s):
            if account.requests is not None:
                account.requests.take(-1, now_s)
            left = f"has no {estimate} tokens left of its {account.tokens.per_minute} a minute"
            raise self._limited(account, "tokens", left, wait_s)
        account.tokens.take(estimate, now_s)
        permit.charged_tokens, permit.input_tokens = estimate, cost.input_tokens

    def settle(self, permit: "Permit", failure: BaseException | None) -> None:
        """The call is over: what it was charged becomes what it used."""
        account, now_s = permit.account, self._clock()
        account.running -= 1
        if account.max_concurrent is not None:
            account.finishing.finished(now_s)
        if account.tokens is not None and permit.charged_tokens:
            used = used_tokens(permit, failure)
            account.tokens.take(used - permit.charged_tokens, now_s)

    def _limited(self, account: Account, limit: str, text: str, wait_s: float) -> RateLimited:
        self._refused(account.name, limit)
        return RateLimited(f"the key {account.name!r} {text}", retry_after_s=max(1, ceil(wait_s)))


class Permit:
    """One call under way on somebody's account; `with` it, the call is settled when it ends."""

    __slots__ = ("_store", "account", "charged_tokens", "input_tokens", "record")

    def __init__(self, account: Account, record: Record, store: KeyStore) -> None:
        self.account = account
        self.record = record
        self.charged_tokens = 0
        self.input_tokens = 0
        self._store = store

    @property
    def is_metered(self) -> bool:
        """Its tokens are limited."""
        return self.account.tokens is not None

    def charge(self, cost: Cost) -> None:
        """Raises RateLimited."""
        self._store.charge(self, cost)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._store.settle(self, exc)


def used_tokens(permit: Permit, failure: BaseException | None) -> int:
    """
    1. what the engine reported, the prompt by estimate where it told the answer only;
    2. what was streamed until it broke off, or until the client left;
    3. nothing, when no replica worked on it, all failed or one refused it;
    4. the estimate: nobody told, or the client left while a replica worked on it.
    """
    record, report = permit.record, permit.record.report
    if report.prompt_tokens is not None or report.generated_tokens is not None:
        told = report.prompt_tokens
        prompt = permit.input_tokens if told is None else told
        return prompt + (report.generated_tokens or 0)
    if record.events:
        return permit.input_tokens + record.events
    has_failed = isinstance(failure, RouterError) and not isinstance(failure, ClientGone)
    if not record.attempts or record.told is not None or has_failed:
        return 0
    return permit.charged_tokens


def _changed(now: Allowance | None, per_minute: int | None, now_s: float) -> Allowance | None:
    if per_minute is None:
        return None
    if now is None:
        return Allowance(per_minute, now_s)
    now.change(per_minute, now_s)
    return now


def _given(headers: Mapping[str, str]) -> str:
    """The key as sent: OpenAI's clients say Authorization, Anthropic's x-api-key."""
    authorization = headers.get("authorization", "")
    if authorization[: len(BEARER)].lower() == BEARER:
        return authorization[len(BEARER) :].strip()
    return headers.get("x-api-key", "").strip()
