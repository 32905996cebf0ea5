"""The command `launcher`: its verbs and options, and the one place where errors become messages.

Every verb is a file in `commands`, imported only when it is called, so that help is fast. Expected
trouble is one `error:` line and the error's own exit code (2: config, 1: the rest), Ctrl-C is 130,
and anything unexpected is a bug: a traceback and exit code 70.
"""

import os
import platform
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from router.errors import OperatorError

P = ParamSpec("P")
INTERRUPTED = 130
BUG = 70  # EX_SOFTWARE; 3 is what `status` says when nothing runs

app = typer.Typer(
    name="launcher",
    help="Start one LLM engine per GPU from a cluster config, behind one HTTP endpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _verb(command: Callable[P, int]) -> Callable[P, None]:
    """Register a verb; what it returns, or raises, becomes the exit code."""

    @app.command()
    @wraps(command)
    def verb(*args: P.args, **kwargs: P.kwargs) -> None:
        raise typer.Exit(_exit_code(lambda: command(*args, **kwargs)))

    return verb


def _exit_code(command: Callable[[], int]) -> int:
    try:
        return command()
    except OperatorError as exc:
        for line in str(exc).splitlines() or [type(exc).__name__]:
            print(f"error: {line}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `launcher logs router | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        print(_how_to_report(), file=sys.stderr)
        return BUG


def _how_to_report() -> str:
    from launcher.commands.version import installed_version

    return (
        "This is a bug in gpu-fleet; what runs was left as it is. Please report the lines above "
        f"together with: gpu-fleet {installed_version()}, Python {platform.python_version()}, "
        f"{platform.platform()}"
    )


Config = Annotated[Path, typer.Option("--config", "-c", help="The cluster config.")]
FLEET = Path("fleet.yaml")


@_verb
def up(
    config: Config = FLEET,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once all is ready; leave it running.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done and start nothing.")
    ] = False,
    foreground_child: Annotated[bool, typer.Option("--foreground-child", hidden=True)] = False,
) -> int:
    """Start a cluster, or adopt what runs of it, and look after it. Ctrl-C stops everything.

    Beside a launcher that runs already: show what the edited config changes, and have it followed,
    one replica after the other, without a failed call.
    """
    from launcher.commands import up as command

    return command.run(config, detach=detach, dry_run=dry_run, is_child=foreground_child)


@_verb
def down(
    config: Config = FLEET,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds until what is left is killed.")
    ] = None,
) -> int:
    """Stop the launcher, the router and every replica, calls in flight first."""
    from launcher.commands import down as command

    return command.run(config, timeout_s=timeout)


@_verb
def plan(
    config: Config = FLEET,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="CARD", help="Plan for this card instead: 4xL4, A100-80, 24GiB."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> int:
    """Show what would run on which GPU, whether it fits there, and why. Starts nothing.

    Exit code 1 when something cannot fit.
    """
    from launcher.commands import plan as command

    return command.run(config, gpu=gpu, as_json=json)


@_verb
def status(
    config: Config = FLEET,
    json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> int:
    """Show what runs right now.

    Exit code, with and without --json:

    0 when everything is ready, drained replicas included;

    1 when something runs but not all of it, or the router sends a replica no calls as it is unwell;

    3 when nothing runs.
    """
    from launcher.commands import status as command

    return command.run(config, as_json=json)


@_verb
def logs(
    name: Annotated[str, typer.Argument(metavar="REPLICA|router|launcher")],
    config: Config = FLEET,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many to begin with.")
    ] = 100,
) -> int:
    """Print the end of a log."""
    from launcher.commands import logs as command

    return command.run(config, name, lines=lines, follow=follow)


@_verb
def drain(
    replica: str,
    config: Config = FLEET,
    wait: Annotated[bool, typer.Option("--wait", help="Return once it has no call left.")] = False,
) -> int:
    """Send a replica no more calls; those in flight finish."""
    from launcher.commands import drain as command

    return command.run(config, replica, wait=wait)


@_verb
def undrain(replica: str, config: Config = FLEET) -> int:
    """Send a drained replica calls again."""
    from launcher.commands import drain as command

    return command.run(config, replica, undo=True)


@_verb
def explain(
    call_id: Annotated[
        str | None, typer.Argument(metavar="CALL_ID", help="Its x-request-id, as in the log.")
    ] = None,
    config: Config = FLEET,
    last_failed: Annotated[
        bool, typer.Option("--last-failed", help="The last call that failed.")
    ] = False,
    slowest: Annotated[
        bool, typer.Option("--slowest", help="The slowest one, running ones included.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> int:
    """Show where a recent call's time went, which replicas it tried, and why.

    Exit code 1 when it is not remembered.
    """
    from launcher.commands import explain as command

    return command.run(config, call_id, last_failed=last_failed, slowest=slowest, as_json=json)


@_verb
def ask(
    prompt: str,
    config: Config = FLEET,
    replica: Annotated[str | None, typer.Option(help="Ask this one, past the router.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which one; needed where there are several.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 100,
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Variable that holds the API key, if one is needed.")
    ] = "FLEET_API_KEY",
) -> int:
    """Ask one question and stream the answer."""
    from launcher.commands import ask as command

    return command.run(
        config,
        prompt,
        replica_id=replica,
        model=model,
        max_new_tokens=max_new_tokens,
        key_env=key_env,
    )


@_verb
def key(name: Annotated[str, typer.Argument(help="Whose key it is.")]) -> int:
    """Make an API key: print it once, and the lines of the config that let it in."""
    from launcher.commands import key as command

    return command.run(name)


@_verb
def validate(
    file: Annotated[Path | None, typer.Argument(help="Default: the config of -c.")] = None,
    config: Config = FLEET,
) -> int:
    """Check a config and say what it means; nothing is started."""
    from launcher.commands import validate as command

    return command.run(file or config)


@_verb
def devices(
    json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, every 2 seconds.")] = False,
) -> int:
    """Show this machine's GPUs, how they are and who uses them.

    Exit code:

    0 when all is well, also where there is no GPU or no driver;

    1 when the driver cannot be used, or a GPU needs somebody to look after it.
    """
    from launcher.commands import devices as command

    return command.run(as_json=json, watch=watch)


@_verb
def doctor(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The cluster config; default: fleet.yaml, if any."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> int:
    """Check whether this machine can run a cluster, before anything starts.

    Exit code:

    0 when nothing failed, warnings included;

    1 when something did;

    2 for a config that cannot be read.
    """
    from launcher.commands import doctor as command

    return command.run(config, as_json=json)


@_verb
def schema() -> int:
    """Print the cluster config's JSON Schema, for editors."""
    from launcher.commands import schema as command

    return command.run()


@_verb
def version() -> int:
    """Print what is installed."""
    from launcher.commands import version as command

    return command.run()


def main() -> None:
    """Entry point of the console command; ends the process."""
    app(prog_name="launcher")
