"""Which of the replicas with room gets a call. Add one: a file here and a line in POLICIES."""

from collections.abc import Callable

from router.config import Policy as PolicyName
from router.policies.base import Policy
from router.policies.expected_finish import ExpectedFinish
from router.policies.least_requests import LeastRequests
from router.policies.least_tokens import LeastTokens
from router.policies.power_of_two import PowerOfTwo
from router.policies.prefix_affinity import PrefixAffinity
from router.policies.round_robin import RoundRobin

POLICIES: dict[PolicyName, Callable[[], Policy]] = {
    "expected_finish": ExpectedFinish,
    "least_tokens": LeastTokens,
    "least_requests": LeastRequests,
    "round_robin": RoundRobin,
    "power_of_two": PowerOfTwo,
    "prefix_affinity": PrefixAffinity,
}

__all__ = ["POLICIES", "Policy"]
