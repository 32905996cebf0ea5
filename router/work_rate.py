"""How fast a pool works off its calls, and so how long a call will wait or take. Pure.

Little's law: what is in flight, over the time it stays there, is what is finished per second. While
calls wait the replicas are full, so this is what they can do; a replica that comes or goes changes
it at once. Counted in tokens as charged (`fairness`), because calls differ a hundredfold.
"""

FIRST_CALLS = 10
"""Finished calls after which estimates may be used against a client."""
WEIGHT = 0.02
"""Of a call in the running means, once there are many."""
LATELY = 0.1
"""Of a call in what is said of the last few."""
LEAST_DRIFT = 1.02
"""The quickest call is forgotten by a factor of two within 35 slower ones."""


class WorkRate:
    def __init__(self) -> None:
        self.calls = 0
        """Finished so far."""
        self.lately_s = 1.0
        """How long a replica has a call, lately."""
        self._in_flight_tokens = 0.0
        self._tokens = 1.0
        self._token_seconds = 1.0
        self._expected_tokens = 1.0
        self._service_s = 1.0
        self._least_s_per_token = float("inf")

    @property
    def is_known(self) -> bool:
        return self.calls >= FIRST_CALLS

    def began(self, tokens: float) -> None:
        """A call that is charged so many tokens was given a replica."""
        self._in_flight_tokens += tokens

    def ended(self, tokens: float) -> None:
        """And has left it again, however."""
        self._in_flight_tokens = max(0.0, self._in_flight_tokens - tokens)

    def worked(
        self, tokens: float, expected_tokens: int, service_s: float, *, is_whole: bool
    ) -> None:
        """A call that ended had kept its replica busy for so long: it was served, or given up.

        One that was given up would have taken longer. Counted as it is, calls that end at their
        deadline would make service look quick, and so bring about more of their kind.
        """
        self.calls += 1
        weight = max(WEIGHT, 1.0 / self.calls)
        self._tokens += weight * (tokens - self._tokens)
        self._token_seconds += weight * (tokens * service_s - self._token_seconds)
        self._expected_tokens += weight * (expected_tokens - self._expected_tokens)
        whole_s = service_s if is_whole else max(service_s, self.service_s(expected_tokens))
        self._service_s += weight * (whole_s - self._service_s)

    def served(self, expected_tokens: int, service_s: float) -> None:
        self.lately_s += LATELY * (service_s - self.lately_s)
        s_per_token = service_s / max(1, expected_tokens)
        self._least_s_per_token = min(self._least_s_per_token * LEAST_DRIFT, s_per_token)

    @property
    def tokens_per_s(self) -> float:
        """0.0 while nothing is in flight, or nothing has ended yet."""
        if not self.calls:
            return 0.0
        stay_s = self._token_seconds / max(1.0, self._tokens)
        return self._in_flight_tokens / max(1e-6, stay_s)

    @property
    def usual_tokens(self) -> float:
        """What calls are expected to produce; 0.0 while that is not known."""
        return self._expected_tokens if self.is_known else 0.0

    def service_s(self, expected_tokens: int) -> float:
        """How long a call of that length is likely to take; 0.0 while that is not known."""
        if not self.is_known:
            return 0.0
        return self._service_s / max(1.0, self._expected_tokens) * expected_tokens

    def least_service_s(self, expected_tokens: int) -> float:
        """What it takes at the very least, as far as was seen lately; 0.0 while not known.

        A call longer than most counts as one of them: its time is not that many times theirs.
        """
        if not self.is_known or self._least_s_per_token == float("inf"):
            return 0.0
        return self._least_s_per_token * min(expected_tokens, self._expected_tokens)
