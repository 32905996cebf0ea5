"""Real language models in containers: llama-server behind the router, on processors and on GPUs."""

import asyncio
import json
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from launcher.router_client import RouterClient
from launcher.state import StateFolder

CONFIG = Path(__file__).parents[2] / "configs" / "llamacpp.yaml"


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def cluster(request, fleets, llama_image, tiny_gguf):
    """The example's config with another model, on processors as it is, or on GPUs."""
    config = yaml.safe_load(CONFIG.read_text())
    config["models"][0]["id"] = str(tiny_gguf)
    config["engine"]["image"] = llama_image
    config["router"] = {"port": 0}
    if request.param == "gpu":
        del config["models"][0]["devices"]
        del config["engine"]["args"]  # as many slots as the server thinks best
    with fleets() as fleet:
        fleet.write(config)
        fleet.kind = request.param
        fleet.up()
        yield fleet


def test_each_gets_its_gpu_or_none(cluster, docker_engines):
    inside = [environ_of(one).get("NVIDIA_VISIBLE_DEVICES") for one in cluster.containers]
    assert inside == (list(docker_engines.GPUS[:2]) if cluster.kind == "gpu" else ["void"] * 2)


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_a_completion(cluster, route):
    status, headers, reply = cluster.post(f"/v1/{route}", body_of(route))
    assert status == 200, reply
    body = json.loads(reply)
    assert body["usage"]["completion_tokens"] == 9
    assert text_of(body["choices"][0], route)
    assert headers["x-fleet-replica"] in {"replica-0", "replica-1"}


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_a_stream(cluster, route):
    status, _, reply = cluster.post(f"/v1/{route}", body_of(route) | {"stream": True})
    assert status == 200, reply
    *events, end = [line for line in reply.decode().split("\n\n") if line]
    assert end == "data: [DONE]"
    choices = [json.loads(event.removeprefix("data: "))["choices"] for event in events]
    assert "".join(text_of(choice[0], route) for choice in choices if choice)
    assert [choice[0]["finish_reason"] for choice in choices if choice][-1] == "length"


async def test_the_room_is_that_of_its_slots(cluster):
    slots = await asyncio.to_thread(slots_of, cluster.record()["replicas"][0]["url"])
    assert slots >= 1
    async with RouterClient(StateFolder(cluster.state_dir).admin_socket) as client:
        (pool,) = (await client.state())["pools"]
    assert [replica["capacity"]["requests"] for replica in pool["replicas"]] == [slots, slots]


def test_tgis_route_is_refused_in_words_that_help(cluster):
    status, _, reply = cluster.post("/generate", {"inputs": "hello"})
    assert status == 404
    assert b"the model 'qwen' has no /generate; it has: " in reply
    assert b"/v1/chat/completions, /v1/completions" in reply


def slots_of(url):
    """In the server's own words."""
    with urlopen(f"{url}/props", timeout=10) as reply:
        return json.load(reply)["total_slots"]


def body_of(route):
    prompt = {"prompt": "hello"}
    if route == "chat/completions":
        prompt = {"messages": [{"role": "user", "content": "hello"}]}
    return {"model": "qwen", "max_tokens": 9, **prompt}


def text_of(choice, route):
    if route == "completions":
        return choice["text"]
    return (choice.get("message") or choice["delta"]).get("content") or ""


def environ_of(container):
    raw = Path(f"/proc/{container.attrs['State']['Pid']}/environ").read_bytes()
    return dict(pair.split("=", 1) for pair in raw.decode().split("\0") if "=" in pair)
