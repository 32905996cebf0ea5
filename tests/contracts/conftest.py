"""Fixtures of the contract suites: schema checks, and a server to run them against."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _load(name):
    """A module beside this file; tests are no package, so it is loaded by its path."""
    qualified = f"contracts_{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, HERE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        spec.loader.exec_module(module)
    return sys.modules[qualified]


@pytest.fixture(scope="session")
def openapi():
    """The module ``openapi_check``: ``Reply``, ``OpenApiCheck``, ``OwnSchemas``."""
    return _load("openapi_check")


@pytest.fixture(scope="session")
def contract_calls():
    """The module ``openapi_calls``: requests for every route and status."""
    return _load("openapi_calls")


@pytest.fixture(scope="session")
def tgi_documents(openapi):
    """TGI's own documents by version; skips where this checkout has none beside it."""
    documents = openapi.load_documents()
    if not documents:
        pytest.skip(f"TGI's OpenAPI documents are not in {openapi.DOCUMENTS}")
    return documents


@pytest.fixture(scope="session")
def own_schemas(openapi):
    """Our own schemas of replies."""
    return openapi.OwnSchemas()


@pytest.fixture(scope="session")
def simulator_url():
    """``simulator_url("1.4.4")``: one simulator process per version, with faults enabled."""
    urls, processes = {}, []

    def start(version):
        if version not in urls:
            command = [sys.executable, "-m", "launcher.simulator", "--port", "0", "--faults"]
            flags = ["--version", version, "--time-scale", "0", "--enable-prefill-logprobs"]
            process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
            processes.append(process)
            found = (re.search(r"listening on (http://\S+)", line) for line in process.stdout)
            urls[version] = next(match[1] for match in found if match)
        return urls[version]

    yield start
    for process in processes:
        process.terminate()
        process.communicate(timeout=30)
