"""Who may import whom. Read from the source, so that an import inside a function counts, too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROUTER = sorted((ROOT / "router").rglob("*.py"))
LAUNCHER = sorted((ROOT / "launcher").rglob("*.py"))
DECIDING = [
    "proxy",
    "first_attempt",
    "outcomes",
    "apis",
    "dialects",
    "dispatcher",
    "choosing",
    "request_queue",
    "retry",
    "policies",
]
NO_AIOHTTP = {*DECIDING, "sse", "health"}
SLOW = {"docker", "rich", "text_generation", "pynvml"}  # each wanted by few verbs
SLOW_AT_START = {*SLOW, "aiohttp", "pydantic"}


def router_part(path):
    """`policies` for router/policies/base.py, `sse` for router/sse.py."""
    return path.relative_to(ROOT / "router").with_suffix("").parts[0]


def is_in(name, package):
    return name == package or name.startswith(package + ".")


def imports_of(path, tree=None):
    """Full names of everything the file imports; relative imports resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def offenders(paths, is_forbidden):
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports_of(path)
        if is_forbidden(path, name)
    ]


def test_the_router_never_imports_the_launcher():
    assert ROUTER
    assert offenders(ROUTER, lambda _, name: is_in(name, "launcher")) == []


def test_the_launcher_takes_only_config_and_errors_from_the_router():
    def is_forbidden(_, name):
        allowed = ("router.config", "router.errors")
        return is_in(name, "router") and not any(is_in(name, package) for package in allowed)

    assert LAUNCHER
    assert offenders(LAUNCHER, is_forbidden) == []


def test_what_decides_never_imports_aiohttp():
    pure = [path for path in ROUTER if router_part(path) in NO_AIOHTTP]
    assert offenders(pure, lambda _, name: is_in(name, "aiohttp")) == []


def test_the_router_never_imports_the_client_library():
    assert offenders(ROUTER, lambda _, name: is_in(name, "text_generation")) == []


def test_only_one_file_talks_to_the_gpu_driver():
    def is_forbidden(path, name):
        return is_in(name, "pynvml") and path != ROOT / "launcher" / "gpus.py"

    assert offenders([*ROUTER, *LAUNCHER], is_forbidden) == []


def test_tasks_are_made_in_one_place():
    def is_forbidden(path, name):
        return name.startswith("asyncio.create_task") and path != ROOT / "router" / "tasks.py"

    assert offenders([*ROUTER, *LAUNCHER], is_forbidden) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import router.proxy", ["router.proxy"]),
        ("from router import proxy as p", ["router.proxy"]),
        ("from . import x", ["launcher.x"]),
        ("def f():\n    import docker", ["docker"]),
    ],
)
def test_the_reader_sees_every_form_of_import(source, expected):
    assert list(imports_of(ROOT / "launcher" / "x.py", ast.parse(source))) == expected


def modules_after(*names):
    """The modules that a fresh Python holds after importing these."""
    code = f"import sys, {', '.join(names)}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_launcher_starts_without_slow_imports():
    assert SLOW_AT_START & modules_after("launcher.cli") == set()


def test_commands_import_slow_things_inside():
    commands = [
        f"launcher.commands.{path.stem}"
        for path in (ROOT / "launcher" / "commands").glob("*.py")
        if path.stem != "__init__"
    ]
    assert commands
    assert SLOW & modules_after(*commands) == set()
