"""A Docker Engine of one's own: real dockerd and containerd, and GPUs that a script pretends.

Shares nothing with an engine that already runs here: own folder, socket, containerd, bridge and
control group; no packet filter rule is made, as published ports on loopback need none. Containers
reach nobody, and no image can be pulled. Whatever ends this process, `docker_reaper.py` then
leaves the machine as it was. What an engine does about GPUs is in `gpu_hook.py`.
"""

import fcntl
import http.client
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).parent
START_S = 60.0
STOP_S = 60.0
LOOK_EVERY_S = 0.02
NEEDED_PROGRAMS = ("dockerd", "containerd", "containerd-shim-runc-v2", "runc", "docker-proxy")
NEEDED_TOOLS = ("ip", "mount")
OTHER_PROGRAMS = ("docker-init", "apparmor_parser", "iptables", "modprobe", "ps", "unpigz", "xz")
"""With those needed, all that the daemons find: their PATH has no hook of a host with GPUs.

iptables is used within containers only: rules there lead to the engine's name server.
"""
HOOK = "nvidia-container-runtime-hook"
MARK = "GPU_FLEET_RIG"
"""In the environment of every process of an engine, with its folder: so the reaper finds them."""

GPUS = tuple(
    f"GPU-{digit * 8}-{digit * 4}-{digit * 4}-{digit * 4}-{digit * 12}" for digit in "0123"
)
"""What an engine has unless told otherwise."""

# For tests of network gear, so no route leads there.
SUBNETS = ipaddress.ip_network("198.18.0.0/15").subnets(new_prefix=24)

CONTAINERD_CONFIG = """version = 2
root = "{root}/containerd/root"
state = "{root}/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{root}/containerd.sock"
[debug]
address = "{root}/containerd-debug.sock"
"""


class EngineError(Exception):
    """The engine did not do what was asked; the message quotes the end of its log."""


def missing() -> str | None:
    """Why no engine can be started here; None if one can."""
    if os.geteuid() != 0:
        return "a private Docker Engine needs root"
    gone = [name for name in NEEDED_PROGRAMS + NEEDED_TOOLS if _program(name) is None]
    return f"a private Docker Engine needs {', '.join(gone)}" if gone else None


def tells_oom() -> bool:
    """Whether an engine here says of a container killed for memory that it was.

    containerd cannot read any control group once a hierarchy of version 1 is mounted elsewhere
    only; a systemd within a privileged container is one that does so.
    """
    attached = [line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    here = [set(options.split(",")) for _, _, kind, options, *_ in mounts if kind == "cgroup"]
    return all(any(set(one.split(",")) <= options for options in here) for one in attached if one)


class PrivateEngine:
    """Runs from entering to leaving; `stop`, `kill` and `pause` are for tests of just that.

    ``hook=False`` is a host without NVIDIA's container toolkit; ``flags`` go to dockerd, such as
    ``--live-restore``. The folder is made within ``parent``, which should not lie on an overlay.
    """

    def __init__(
        self,
        parent: Path | None = None,
        *,
        hook: bool = True,
        gpus: Iterable[str] = GPUS,
        flags: Iterable[str] = (),
    ) -> None:
        self._parent = parent
        self._has_hook = hook
        self._first_gpus = tuple(gpus)
        self._flags = tuple(flags)
        self._open = ExitStack()
        self._dockerd: subprocess.Popen[bytes] | None = None
        self.root = Path()

    def __enter__(self) -> "PrivateEngine":
        self.root = Path(tempfile.mkdtemp(prefix="gfr-", dir=self._parent or _disk_dir()))
        try:
            self._open.enter_context(_reaper(self.root))
            self._furnish()
            _add_bridge(self.root.name)
            self._open.enter_context(self._containerd())
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Everything is gone afterwards: containers, images, bridge, processes, mounts."""
        if self._dockerd is not None:
            self.kill()
        self._open.close()

    # ---- the daemon ----

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def socket(self) -> Path:
        return self.root / "docker.sock"

    @property
    def env(self) -> dict[str, str]:
        """What a program is given that shall use this engine."""
        return {"DOCKER_HOST": self.url}

    @property
    def is_running(self) -> bool:
        return self._dockerd is not None and self._dockerd.poll() is None

    @property
    def log(self) -> str:
        """What dockerd said since the engine was made."""
        return (self.root / "dockerd.log").read_text(errors="replace")

    def client(self, timeout_s: float = 60):
        """A client of the Docker SDK; the caller closes it."""
        import docker  # slow to import

        return docker.DockerClient(base_url=self.url, timeout=timeout_s)

    def start(self) -> None:
        """Returns once it answers."""
        # Left by a kill; dockerd refuses to start where another process has that number now.
        (self.root / "docker.pid").unlink(missing_ok=True)
        self._dockerd = self._daemon("dockerd", *self._dockerd_flags())
        deadline_s = time.monotonic() + START_S
        while not self.answers():
            if not self.is_running or time.monotonic() > deadline_s:
                raise EngineError(f"dockerd does not answer:\n{self.log[-2000:]}")
            time.sleep(LOOK_EVERY_S)

    def stop(self) -> None:
        """As a service manager does: containers are stopped first, unless ``--live-restore``."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """A crash of dockerd. containerd is a service of its own, so containers run on."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """With the same images and containers."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Connections are accepted by the kernel, and nothing ever comes back; see `resume`."""
        assert self._dockerd is not None
        self._dockerd.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._dockerd is not None
        self._dockerd.send_signal(signal.SIGCONT)

    def answers(self) -> bool:
        connection = _UnixConnection(self.socket)
        try:
            connection.request("GET", "/_ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    # ---- its GPUs ----

    def set_gpus(self, *ids: str) -> None:
        """What the host has from now on; others are an unknown device."""
        _replace(self.root / "gpus", "".join(f"{id_}\n" for id_ in ids))

    def break_gpus(self, message: str) -> None:
        """Every start with a GPU fails with that text, until `heal_gpus`."""
        _replace(self.root / "gpu-failure", message)

    def heal_gpus(self) -> None:
        (self.root / "gpu-failure").unlink(missing_ok=True)

    # ---- below ----

    def _furnish(self) -> None:
        (self.root / "bin").mkdir()
        for name in NEEDED_PROGRAMS + OTHER_PROGRAMS:
            if (program := _program(name)) is not None:
                (self.root / "bin" / name).symlink_to(program)
        if self._has_hook:
            hook = self.root / "bin" / HOOK
            hook.write_text(f"#!{sys.executable} -IS\n{(HERE / 'gpu_hook.py').read_text()}")
            hook.chmod(0o755)
        self.set_gpus(*self._first_gpus)
        (self.root / "containerd.toml").write_text(CONTAINERD_CONFIG.format(root=self.root))
        (self.root / "daemon.json").write_text("{}")

    def _dockerd_flags(self) -> list[str]:
        root, name = self.root, self.root.name
        return [
            f"--data-root={root}/data",
            f"--exec-root={root}/exec",
            f"--pidfile={root}/docker.pid",
            f"--config-file={root}/daemon.json",
            f"--containerd={root}/containerd.sock",
            f"--host=unix://{self.socket}",
            f"--bridge={name}",
            f"--cgroup-parent=/{name}",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--storage-driver={_storage_driver(root)}",
            "--iptables=false",
            "--ip-forward=false",
            "--ip-masq=false",
            *self._flags,
        ]

    @contextmanager
    def _containerd(self) -> Iterator[None]:
        process = self._daemon("containerd", "--config", str(self.root / "containerd.toml"))
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def _daemon(self, name: str, *flags: str) -> subprocess.Popen[bytes]:
        env = {
            "PATH": f"{self.root}/bin",
            MARK: str(self.root),
            # A pull fails at once, everywhere in the same way, and asks nobody.
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }
        with (self.root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [self.root / "bin" / name, *flags],
                env=env,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests
            )

    def _end(self, number: signal.Signals) -> None:
        assert self._dockerd is not None
        self._dockerd.send_signal(number)
        self.resume()
        self._dockerd.wait(STOP_S)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextmanager
def _reaper(root: Path) -> Iterator[None]:
    """Cleans up when its standard input ends: here, or because this process is no more."""
    script = HERE / "docker_reaper.py"
    process = subprocess.Popen(
        [sys.executable, "-IS", str(script), str(root)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield
    finally:
        _, said = process.communicate(timeout=STOP_S)
        if process.returncode:
            raise EngineError(f"not everything of {root} is gone:\n{said.decode()}")


def _add_bridge(name: str) -> None:
    """A bridge in a subnet nobody has; one at a time, so that two never choose the same."""
    with (Path(tempfile.gettempdir()) / "gpu-fleet-bridges.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        taken = [
            ipaddress.ip_network(f"{address['local']}/{address['prefixlen']}", strict=False)
            for link in json.loads(_ip("-json", "-4", "address", "show"))
            for address in link.get("addr_info", ())
        ]
        subnet = next(net for net in SUBNETS if not any(net.overlaps(other) for other in taken))
        _ip("link", "add", name, "type", "bridge")
        _ip("address", "add", f"{subnet[1]}/{subnet.prefixlen}", "dev", name)
        _ip("link", "set", name, "up")


def _ip(*words: str) -> str:
    done = subprocess.run([_program("ip") or "ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _program(name: str) -> str | None:
    """Daemons lie where a user's PATH may not lead."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _disk_dir() -> Path:
    """The first usual place that is a disk: overlays do not stack, and memory is dear."""
    places = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/var/lib")]
    return next(
        (place for place in places if _kind(place) not in ("overlayfs", "tmpfs")), places[0]
    )


def _kind(place: Path) -> str:
    """The type of file system there."""
    return subprocess.check_output(["stat", "-f", "-c", "%T", place], text=True).strip()


def _storage_driver(root: Path) -> str:
    """overlay2 where an overlay can be mounted; else vfs, which copies every layer."""
    with tempfile.TemporaryDirectory(dir=root) as trial:
        for name in ("lower", "upper", "work", "merged"):
            (Path(trial) / name).mkdir()
        layers = f"lowerdir={trial}/lower,upperdir={trial}/upper,workdir={trial}/work"
        mount = ["mount", "-t", "overlay", "overlay", "-o", layers, f"{trial}/merged"]
        if subprocess.run(mount, capture_output=True).returncode:
            return "vfs"
        subprocess.run(["umount", f"{trial}/merged"], check=True)
    return "overlay2"


def _replace(path: Path, text: str) -> None:
    """At once, as a hook may be reading it."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.rename(path)
