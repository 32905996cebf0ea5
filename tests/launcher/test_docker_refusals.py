"""An engine's words, as engines of different versions say them, and what we make of them."""

import pytest

from launcher.docker.refusals import (
    Refused,
    is_port_taken,
    not_answering,
    pull_error,
    start_error,
)
from router.errors import RuntimeAway, StartError

HOOK = (
    "failed to create shim: OCI runtime create failed: container_linux.go:380: starting container "
    "process caused: process_linux.go:545: container init caused: Running hook #0:: error running "
    "hook: exit status 1, stdout: , stderr: nvidia-container-cli: "
)
SHIM = "failed to create task for container: failed to start shim: start failed: "


@pytest.mark.parametrize(
    ("text", "advice", "recoverable", "is_slow"),
    [
        (
            'could not select device driver "" with capabilities: [[gpu compute utility]]',
            "NVIDIA Container Toolkit",
            True,
            True,
        ),
        (
            'exec: "nvidia-container-runtime-hook": executable file not found in $PATH',
            "NVIDIA Container Toolkit",
            True,
            True,
        ),
        (HOOK + "device error: GPU-x: unknown device: unknown", "nvidia-smi -L", True, True),
        (HOOK + "initialization error: nvml error: driver not loaded", "`nvidia-smi`", True, True),
        (
            "invoking the NVIDIA Container Runtime Hook directly (e.g. specifying the docker "
            "--gpus flag) is not supported. Please use the NVIDIA Container Runtime",
            "gpu_injection to runtime",
            False,
            False,
        ),
        (
            "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7",
            "nvidia-ctk cdi list",
            True,
            True,
        ),
        ("Unknown runtime specified nvidia", "nvidia-ctk runtime configure", True, True),
        ("unknown or invalid runtime name: nvidia", "nvidia-ctk runtime configure", True, True),
        ("write /var/lib/docker/x: no space left on device", "docker system df", True, True),
        ("network nowhere not found", "docker network create", True, True),
        (
            'Conflict. The container name "/a" is already in use by container "3f". You ...',
            "docker rm -f",
            True,
            True,
        ),
        ("No such image: nobody/nothing:1", "docker pull", True, True),
        (
            'OCI runtime create failed: exec: "vllm": executable file not found in $PATH: unknown',
            "right version",
            False,
            False,
        ),
        (
            "unable to find user nobody2: no matching entries in passwd file",
            "runtime.docker.user",
            False,
            False,
        ),
        (
            'exec: "docker-init": executable file not found in $PATH',
            "package tini",
            True,
            True,
        ),
        (SHIM + 'exec: "containerd-shim-runc-v2": executable file not found', "upgraded", 1, 0),
        (SHIM + 'exec: "runc": executable file not found in $PATH: unknown', "upgraded", 1, 0),
        (SHIM + "fork/exec /usr/bin/nvidia-cdi-hook: no such file or directory", "says", 1, 0),
        (
            "unable to retrieve OCI runtime error (open /run/log.json: no such file or directory): "
            'exec: "nvidia-container-runtime": executable file not found in $PATH: unknown',
            "upgraded",
            True,
            False,
        ),
        (
            'error mounting "/dev/nvidia0" to rootfs at "/dev/nvidia0": not a directory: unknown',
            "nvidia-smi",
            True,
            False,
        ),
        (
            'error gathering device information while adding custom device "/dev/nvidia-uvm": no '
            "such file or directory",
            "nvidia-smi",
            True,
            False,
        ),
        (
            SHIM + 'error mounting "/srv/x" to rootfs at "/model": not a directory: unknown',
            "engine.volumes",
            False,
            False,
        ),
        (SHIM + 'exec: "runcible": executable file not found in $PATH', "right version", 0, 0),
        ("something nobody has seen before", "the Docker Engine says", True, False),
    ],
)
def test_starts_that_are_refused(text, advice, recoverable, is_slow):
    error = start_error(Refused(500, text), "replica-0")
    assert str(error).startswith("replica-0: ")
    assert advice in str(error)
    assert (error.recoverable, error.is_slow) == (bool(recoverable), bool(is_slow))


def test_a_hooks_own_words_are_quoted_without_the_layers_before_them():
    error = start_error(Refused(500, HOOK + "device error: GPU-x: unknown device: unknown"), "r")
    assert (
        "(the Docker Engine says: nvidia-container-cli: device error: GPU-x: unknown device)"
        in (str(error))
    )


def test_a_long_story_is_cut():
    assert len(str(start_error(Refused(500, "x" * 5000), "r"))) < 400


@pytest.mark.parametrize(
    ("text", "advice", "recoverable", "is_slow"),
    [
        ("manifest for a/b:9 not found: manifest unknown: manifest unknown", "no such tag", 0, 0),
        ("manifest unknown", "no such tag", False, False),
        ('failed to resolve reference "ghcr.io/a/b:9": ghcr.io/a/b:9: not found', "tag", 0, 0),
        (
            "failed to copy: httpReadSeeker: failed open: could not fetch content descriptor "
            "sha256:12ab (application/vnd.oci.image.layer.v1.tar+gzip) from remote: not found",
            "a part of the image",
            True,
            False,
        ),
        (
            'failed to prepare extraction snapshot "extract-123": parent snapshot sha256:ab does '
            "not exist: not found",
            "a part of the image",
            True,
            False,
        ),
        ("content digest sha256:abcd: not found", "a part of the image", True, False),
        ("failed to register layer: open /x/y: file not found", "a part of the image", 1, 0),
        (
            "pull access denied for a/b, repository does not exist or may require 'docker login': "
            "denied: requested access to the resource is denied",
            "docker login",
            True,
            True,
        ),
        ('Head "https://ghcr.io/v2/a/b/manifests/1": unauthorized', "docker login", True, True),
        ('Head "https://ghcr.io/v2/a/b/manifests/1": denied', "docker login", True, True),
        ("toomanyrequests: You have reached your pull rate limit", "docker login", True, True),
        ('Get "https://ghcr.io/v2/": dial tcp: lookup ghcr.io: no such host', "reached", 1, 0),
        (
            'Get "https://ghcr.io/v2/": net/http: TLS handshake timeout',
            "cannot be reached",
            True,
            False,
        ),
        (
            'Get "https://ghcr.io/v2/": proxyconnect tcp: dial tcp 127.0.0.1:9: connect: '
            "connection refused",
            "cannot be reached",
            True,
            False,
        ),
        ("unexpected EOF", "cannot be reached", True, False),
        ("failed to register layer: write /x: no space left on device", "image prune", True, True),
        ("no matching manifest for linux/arm64/v8 in the manifest list", "processor", False, False),
        ("x509: certificate signed by unknown authority", "not trusted", True, True),
        ("invalid reference format", "engine.image", False, False),
    ],
)
def test_pulls_that_fail(text, advice, recoverable, is_slow):
    error = pull_error(text, "a/b:9")
    assert str(error).startswith("cannot pull the image a/b:9: ")
    assert advice in str(error)
    assert (error.recoverable, error.is_slow) == (bool(recoverable), bool(is_slow))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bind for 127.0.0.1:9091 failed: port is already allocated", True),
        ("listen tcp4 127.0.0.1:9091: bind: address already in use", True),
        ("no space left on device", False),
    ],
)
def test_a_taken_port_is_known_by_its_words(text, expected):
    assert (
        is_port_taken(Refused(500, f"driver failed programming connectivity: {text}")) is expected
    )


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ("[Errno 2] No such file or directory", RuntimeAway, "systemctl start docker"),
        ("[Errno 111] Connection refused", RuntimeAway, "systemctl start docker"),
        ("Read timed out. (read timeout=10)", RuntimeAway, "in time"),
        ("('Connection aborted.', ConnectionResetError(104))", RuntimeAway, "does not answer"),
        ("[Errno 13] Permission denied", StartError, "usermod -aG docker"),
        ("Invalid bind address protocol: foo://x", StartError, "runtime.docker.url"),
        ("Install paramiko package to enable ssh:// support", StartError, "paramiko"),
    ],
)
def test_an_engine_that_cannot_be_asked(words, kind, said):
    error = not_answering(words, "unix:///x.sock")
    assert type(error) is kind
    assert said in str(error)
    assert "unix:///x.sock" in str(error)
    assert getattr(error, "recoverable", True) is (kind is RuntimeAway)


def test_logins_that_cannot_be_got_are_their_helpers_fault():
    words = "StoreError('docker-credential-desktop not installed or not available in PATH')"
    error = not_answering(f"Credentials store error: {words}", "unix:///x.sock")
    assert isinstance(error, StartError)
    assert "from docker-credential-desktop: install it" in str(error)
    assert "~/.docker/config.json" in str(error)
    assert (error.recoverable, error.is_slow) == (True, True)
