"""Who reaches the endpoint, and which ports are free: its own, and those that replicas take.

Binds each for a moment, and lets it go.
"""

from collections.abc import Iterator
from itertools import islice

from launcher import listener, ports
from launcher.checkup.base import Check, Finding, failed, failed_by, passed, warned
from launcher.checkup.subject import Subject
from launcher.engines import ENGINES
from launcher.engines.images import version_of_spec
from launcher.engines.tgi import IMAGE as TGI_IMAGE
from launcher.gpu_host import process_name
from launcher.placement import ReplicaSpec
from launcher.router_process import running_routers
from router.config import RouterConfig, is_loopback
from router.config.words import count
from router.errors import StartError

_SYSTEMD = 1  # holds the sockets of its units
# Of these versions each opens this port on all addresses for a moment, whatever it is told.
_TGI_FIXED_SINCE, _TGI_FIXED_UNTIL, _TGI_FIXED_PORT = (2, 3, 0), (3, 3, 0), 9000


def _endpoint(subject: Subject) -> Iterator[Finding]:
    from launcher.commands.validate import open_endpoint, require_pair

    assert subject.router is not None
    found = False
    try:
        require_pair(subject.router)
    except StartError as exc:
        found = True
        yield failed_by(exc)
    for warning in open_endpoint(subject.router):
        what, _, advice = warning.partition("; ")
        found = True
        yield warned(what, advice)
    if not found:
        yield passed(_who_may_call(subject.router))


def _who_may_call(router: RouterConfig) -> str:
    if is_loopback(router.host):
        return f"only this machine reaches {router.host}"
    names = len({key.name for key in router.keys})
    return f"{router.host} asks for a key, over TLS; {count(names, 'name')} may call"


def _router_port(subject: Subject) -> Iterator[Finding]:
    router = subject.router
    assert router is not None
    if router.port == 0:
        yield passed(f"any free one on {router.host}")
        return
    where, holders = f"{router.host}:{router.port}", ports.holders_of(router.port)
    if set(holders) & _own_pids(subject):
        yield passed(f"{where} is held by this cluster, which runs (pid {holders[0]})")
    elif _SYSTEMD in holders:
        yield passed(f"{where} is held by systemd, for a socket unit; is it this cluster's?")
    else:
        try:
            listener.bind(router.host, router.port).close()
        except StartError as exc:
            yield failed_by(exc)
        else:
            yield passed(f"{where} is free")


def _own_pids(subject: Subject) -> set[int]:
    if subject.cluster is None:
        return set()
    folder = subject.cluster.folder
    holder = folder.holder()
    pids = {found.process.pid for found in running_routers(folder)}
    return pids | ({holder.pid} if holder else set())


def _replica_ports(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    assert config is not None
    runtime, running = config.runtime, {handle.replica_id for handle in subject.running}
    host = ports.address_of(runtime.host)
    waiting = [spec for spec in subject.specs if spec.id not in running]
    if running:
        yield passed(f"{count(len(running), 'replica')} of this cluster already running")
    if not waiting:
        return
    free = list(islice(ports.free_ports(host, runtime.first_port, ()), len(waiting)))
    if len(free) < len(waiting):
        yield failed(
            f"found {count(len(free), 'free port')} from {runtime.first_port} on {host}, expected "
            f"{len(waiting)}",
            "set runtime.first_port lower",
        )
        return
    last = runtime.first_port + len(waiting) - 1
    if free[-1] == last:
        shown = f"{free[0]} to {last} are" if last > free[0] else f"{last} is"
        yield passed(f"{shown} free on {host}")
    else:
        taken = sorted(set(range(runtime.first_port, free[-1])) - set(free))
        who = _holder(taken[0])
        yield passed(f"{host}: some are taken ({taken[0]}: {who}), others up to {free[-1]} serve")


def _extra_ports(subject: Subject) -> Iterator[Finding]:
    """Ports that engines open beside their own, where they share this machine's network."""
    config = subject.config
    assert config is not None
    host, first = ports.address_of(config.runtime.host), config.runtime.first_port
    running = {handle.replica_id for handle in subject.running}
    taken = {
        port: spec.id
        for position, spec in enumerate(subject.specs)
        if spec.id not in running
        for port in _extra(spec, first + position, host)
        if not ports.is_free(host, port)
    }
    if taken:
        shown = ", ".join(f"{port} ({_holder(port)})" for port in taken)
        yield passed(f"taken: {shown}; replicas take their ports further up")
    else:
        yield passed("those for shards and metrics are free")
    fixed = [spec for spec in subject.specs if _opens_fixed_port(spec) and spec.id not in running]
    if fixed and not ports.is_free("0.0.0.0", _TGI_FIXED_PORT):
        yield failed(
            f"port {_TGI_FIXED_PORT} is taken by {_holder(_TGI_FIXED_PORT)}; TGI "
            "2.3 to 3.2 ends at once then",
            "free it, or take TGI 3.3, or `runtime: docker`",
        )


def _holder(port: int) -> str:
    """Who has it, by name only: arguments may hold secrets."""
    pids = ports.holders_of(port)
    if not pids:
        return "a process of another user"
    return f"pid {pids[0]} {process_name(pids[0])}".rstrip()


def _extra(spec: ReplicaSpec, port: int, host: str) -> tuple[int, ...]:
    return ENGINES[spec.engine_name].command(spec, port, host).extra_ports


def _opens_fixed_port(spec: ReplicaSpec) -> bool:
    version = version_of_spec(spec, TGI_IMAGE)
    return spec.engine_name == "tgi" and _TGI_FIXED_SINCE <= version < _TGI_FIXED_UNTIL


def _opens_extra_ports(subject: Subject) -> bool:
    config = subject.config
    if config is None or subject.uses_docker:
        return False
    return any(config.engine_of(model).name == "tgi" for model in config.models)


CHECKS = (
    Check("endpoint", _endpoint, lambda subject: subject.router is not None),
    Check("router port", _router_port, lambda subject: subject.router is not None),
    Check(
        "replica ports", _replica_ports, lambda subject: subject.config is not None, limit_s=60.0
    ),
    Check("engine ports", _extra_ports, _opens_extra_ports, limit_s=60.0),
)
