"""`python -m launcher.healthcheck`: whether what runs in this container serves, for HEALTHCHECK.

It finds out by itself what that is. 1. A router: its `/health`. 2. A launcher without one: its
endpoint is down. 3. A simulator alone: its `/health`. 4. Anything else serves nobody and is well.
Exit code 0 or 1, and one line for `docker inspect`. Reads /proc, of processes in its own mount
namespace only; imports nothing slow, as it is run every few seconds.
"""

import http.client
import ipaddress
import os
import ssl
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePath

_PROC = Path("/proc")
_TIMEOUT_S = 4.0  # below that of HEALTHCHECK, so that it is we who say what is wrong
_LISTEN = "0A"


def main() -> int:
    is_well, line = verdict(_neighbours())
    print(line)
    return 0 if is_well else 1


def verdict(pids: Iterable[int]) -> tuple[bool, str]:
    """Whether all is well with these processes, and a line that says why."""
    by_role: dict[str, list[int]] = {}
    for pid in pids:
        by_role.setdefault(role_of(_argv(pid)), []).append(pid)
    if routers := by_role.get("router"):
        return _first_well(routers, "router")
    if by_role.get("launcher"):
        return False, "a launcher runs, but no router: the endpoint is down"
    if simulators := by_role.get("simulator"):
        return _first_well(simulators, "simulator")
    return True, "nothing here serves HTTP"


def role_of(argv: list[str]) -> str:
    """`router`, `launcher` (only of `up`), `simulator` or nothing, by a process's command line."""
    words = iter(argv)
    for word in words:
        # `python -m NAME`, or a console script, which is `python /path/NAME`.
        if word.startswith("-") and word not in {"-m", "-c"}:
            continue
        name = next(words, "") if word == "-m" else PurePath(word).name
        if name in {"router", "launcher.simulator"}:
            return name.rpartition(".")[2]
        if name == "launcher":
            return "launcher" if "up" in words else ""
        if not name.startswith("python"):
            return ""
    return ""


def address_of(hex_address: str) -> tuple[str, int]:
    """`0100007F:1F90` of /proc/net/tcp is 127.0.0.1:8080; any address is reached at loopback."""
    digits, _, port = hex_address.partition(":")
    words = bytes.fromhex(digits)
    # The kernel prints each 32-bit word in the machine's own order.
    if sys.byteorder == "little":
        words = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    ip = ipaddress.ip_address(words)
    if ip.is_unspecified:
        ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return str(ip), int(port, 16)


def _first_well(pids: list[int], role: str) -> tuple[bool, str]:
    """While one router takes over from another, one that serves is enough."""
    answers = [_health(host, port) for pid in pids for host, port in _listening(pid)]
    if not answers:
        return False, f"the {role} does not listen"
    return next((answer for answer in answers if answer[0]), answers[0])


def _health(host: str, port: int) -> tuple[bool, str]:
    """Over HTTP, or over HTTPS where that is not spoken; whose certificate it is does not matter
    here."""
    where = f"{f'[{host}]' if ':' in host else host}:{port}/health"
    deadline_s = time.monotonic() + _TIMEOUT_S
    found = _asked(http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S))
    left_s = deadline_s - time.monotonic()
    if isinstance(found, http.client.BadStatusLine | ConnectionResetError) and left_s > 0:
        tls = ssl._create_unverified_context()
        over_tls = _asked(http.client.HTTPSConnection(host, port, timeout=left_s, context=tls))
        if isinstance(over_tls, int):
            return over_tls == 200, f"https://{where}: {over_tls}"
    return found == 200, f"http://{where}: {found}"


def _asked(connection: http.client.HTTPConnection) -> int | Exception:
    """The status of its /health, or why there is none."""
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        return exc
    finally:
        connection.close()


def _neighbours() -> Iterator[int]:
    """Every process of this container but this one, even where it shares the host's pids."""
    ours = os.readlink(_PROC / "self" / "ns" / "mnt")
    for name in os.listdir(_PROC):
        with suppress(OSError):
            is_other = name.isdecimal() and int(name) != os.getpid()
            if is_other and os.readlink(_PROC / name / "ns" / "mnt") == ours:
                yield int(name)


def _argv(pid: int) -> list[str]:
    with suppress(OSError):
        raw = (_PROC / str(pid) / "cmdline").read_bytes()
        return raw.decode(errors="replace").rstrip("\0").split("\0")
    return []


def _listening(pid: int) -> Iterator[tuple[str, int]]:
    inodes = set(_socket_inodes(pid))
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (_PROC / str(pid) / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and fields[9] in inodes:
                    yield address_of(fields[1])


def _socket_inodes(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for fd in os.listdir(_PROC / str(pid) / "fd"):
            with suppress(OSError):
                link = os.readlink(_PROC / str(pid) / "fd" / fd)
                if link.startswith("socket:["):
                    yield link[8:-1]


if __name__ == "__main__":
    sys.exit(main())
