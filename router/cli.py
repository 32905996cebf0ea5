"""`router`: the endpoint as a process of its own."""

import os
import resource
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from router.errors import ConfigError, ConfigProblem, OperatorError, StartError

SYSTEMD_FIRST_FD = 3
WANTED_FILES = 1_048_576
OPEN = "warning: router.keys is empty, so anybody who reaches {} may use it"

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def serve(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Router or cluster config (YAML).")
    ] = None,
    replica: Annotated[
        list[str] | None,
        typer.Option("--replica", "-r", metavar="URL", help="A replica's base URL; repeatable."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    fd: Annotated[
        int | None, typer.Option(help="An inherited listening socket instead of host and port.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Folder for the admin socket and the last replica list.")
    ] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            help="What the replicas speak: tgi (default), or openai for vLLM, Aphrodite and "
            "llama-server."
        ),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="How a replica is chosen.")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """One HTTP endpoint in front of many replicas."""
    if version:
        from router import __version__

        print(f"router {__version__}")
        return
    from router.config import is_loopback
    from router.options import RouterOptions, resolve

    options = RouterOptions(config, replica or [], host, port, state_dir, policy, dialect)
    settings = resolve(options)
    listener = _listener(settings.config.host, settings.config.port, fd)
    _raise_file_limit()
    import uvloop

    from router.app import App

    async def main() -> None:
        app = App(settings.config, listener, state_dir=settings.state_dir, cluster=settings.cluster)
        if config is not None:
            app.read_again = partial(resolve, options)
        app.heed_signals()
        try:
            await app.start(settings.replicas)
        except BaseException:
            await app.close()
            raise
        address, scheme = listener.getsockname(), settings.config.scheme
        where = f"{scheme}://{address[0]}:{address[1]}"
        print(f"router: serving on {where}", file=sys.stderr, flush=True)
        if not settings.config.keys and not is_loopback(address[0]):
            print(f"router: {OPEN.format(where)}", file=sys.stderr, flush=True)
        await app.run()

    uvloop.run(main())


def _listener(host: str, port: int, fd: int | None) -> socket.socket:
    """The inherited socket, systemd's, or a new one. Raises StartError or ConfigError."""
    fd = fd if fd is not None else _systemd_fd()
    if fd is None:
        return _bind(host, port)
    try:
        listener = socket.socket(fileno=fd)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("it does not listen")
    except OSError as exc:
        problem = ConfigProblem("command line", None, "--fd", f"{fd}", "a listening socket")
        raise ConfigError([problem]) from exc
    listener.setblocking(False)
    return listener


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(4096)
    except OSError as exc:
        raise StartError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    listener.setblocking(False)
    return listener


def _systemd_fd() -> int | None:
    """The first socket handed over by systemd (sd_listen_fds(3)), if any is ours."""
    is_ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    count = os.environ.get("LISTEN_FDS", "0")
    return SYSTEMD_FIRST_FD if is_ours and count.isdigit() and int(count) >= 1 else None


def _raise_file_limit() -> None:
    """As many open files as the system allows: each stream takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as exc:
        print(f"router: the open-file limit stays at {soft}: {exc}", file=sys.stderr)


def main() -> None:
    """Runs the command; expected errors are one clear line, not a traceback."""
    try:
        cli()
    except OperatorError as exc:
        print(f"router: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)


if __name__ == "__main__":
    main()
