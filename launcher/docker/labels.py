"""What a container's labels tell the next launcher: whose it is, and which start. Pure.

Written when a container is made, read when it is found again. Anybody who may use the engine can
read them, so no secret is ever among them.
"""

from dataclasses import dataclass

from launcher.placement import ReplicaSpec

_PREFIX = "io.gpu-fleet."
CLUSTER, REPLICA, HOME = _PREFIX + "cluster", _PREFIX + "replica", _PREFIX + "home"
GENERATION, FINGERPRINT = _PREFIX + "generation", _PREFIX + "fingerprint"
URL, DEVICES = _PREFIX + "url", _PREFIX + "devices"


@dataclass(frozen=True, slots=True)
class Place:
    """Which start of which cluster's replica it is, and where it is reached."""

    cluster: str
    home: str  # the state folder of the cluster
    generation: int
    host: str  # an IP address of this machine
    port: int
    url: str


def labels_of(spec: ReplicaSpec, place: Place) -> dict[str, str]:
    return {
        CLUSTER: place.cluster,
        REPLICA: spec.id,
        GENERATION: str(place.generation),
        FINGERPRINT: spec.fingerprint,
        HOME: place.home,
        URL: place.url,
        DEVICES: ",".join(spec.devices),
    }
