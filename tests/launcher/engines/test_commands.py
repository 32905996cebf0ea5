"""The command lines and environments that engines write."""

import re
import subprocess
import sys

import pytest

from launcher.config import ClusterConfig
from launcher.engines import ENGINES, simulator
from launcher.engines.tgi import TgiEngine
from launcher.engines.versions import LATEST, parse_version, show_version
from launcher.placement import replica_specs


def specs(model, engine, **sections):
    data = {"models": [{"id": "org/m", **model}], "engine": engine, **sections}
    return replica_specs(ClusterConfig.model_validate(data))


def command(model, engine, port=31_000, environ=()):
    spec = specs(model, engine)[0]
    if spec.engine_name == "tgi":
        return TgiEngine(dict(environ)).command(spec, port, "127.0.0.1")
    return ENGINES[spec.engine_name].command(spec, port, "127.0.0.1")


def flags(argv):
    """`--a 1 --b` as {"a": "1", "b": None}."""
    found = {}
    for word in argv:
        if word.startswith("--"):
            name = word[2:]
            found[name] = None
        elif found:
            assert found[name] is None, f"two values for --{name}"
            found[name] = word
    return found


def tgi_flags(version, **model):
    engine = {"name": "tgi"} | ({"version": version} if version else {})
    return flags(command(model, engine).argv)


class TestTgi:
    def test_whole_command(self):
        found = command(
            {
                "revision": "abc",
                "dtype": "bfloat16",
                "max_total_tokens": 8192,
                "devices": ["GPU-1"],
            },
            {"name": "tgi", "version": "3.3.5", "args": {"max-batch-size": 8, "json-output": True}},
        )
        assert found.argv == (
            "text-generation-launcher",
            "--model-id", "org/m",
            "--revision", "abc",
            "--dtype", "bfloat16",
            "--num-shard", "1",
            "--max-input-tokens", "8191",
            "--max-total-tokens", "8192",
            "--usage-stats", "off",
            "--hostname", "127.0.0.1",
            "--port", "31000",
            "--master-port", "32200",
            "--shard-uds-path", "/tmp/gpu-fleet-tgi-31000",
            "--prometheus-port", "31600",
            "--max-batch-size", "8",
            "--json-output",
        )  # fmt: skip
        assert found.env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-1"}
        assert (found.ready_path, found.ready_timeout_s) == ("/health", 1800.0)
        assert found.extra_ports == (32_200, 31_600)

    @pytest.mark.parametrize(
        ("version", "name", "absent"),
        [
            ("1.4.4", "max-input-length", "max-input-tokens"),
            ("2.0.0", "max-input-tokens", "max-input-length"),
            ("3.3", "max-input-tokens", "max-input-length"),
            (None, "max-input-tokens", "max-input-length"),
        ],
    )
    def test_the_input_limit_has_the_version_s_name(self, version, name, absent):
        found = tgi_flags(version, max_input_tokens=100, max_total_tokens=200)
        assert (found[name], found["max-total-tokens"]) == ("100", "200")
        assert absent not in found

    @pytest.mark.parametrize(
        ("version", "model", "expected"),
        [
            ("3.3.5", {}, (None, None)),
            ("3.3.5", {"max_total_tokens": 4096}, ("4095", "4096")),
            ("3.3.5", {"max_input_tokens": 1000}, ("1000", None)),
            ("1.4.4", {}, ("2047", "2048")),
            ("1.4.4", {"max_input_tokens": 1000}, ("1000", "2048")),
            ("1.4.4", {"max_total_tokens": 8192}, ("8191", "8192")),
        ],
    )
    def test_the_input_may_fill_all_but_one_token_unless_told_otherwise(
        self, version, model, expected
    ):
        found = tgi_flags(version, **model)
        name = "max-input-length" if version == "1.4.4" else "max-input-tokens"
        assert (found.get(name), found.get("max-total-tokens")) == expected

    def test_an_old_version_s_prefill_budget_holds_its_longest_input(self):
        assert tgi_flags("1.4.4", max_total_tokens=8192)["max-batch-prefill-tokens"] == "8191"
        assert "max-batch-prefill-tokens" not in tgi_flags("1.4.4", max_total_tokens=4096)
        assert "max-batch-prefill-tokens" not in tgi_flags("3.3.5", max_total_tokens=8192)

    @pytest.mark.parametrize(
        ("version", "expected"),
        [
            ("1.4.4", {}),
            ("2.1.1", {}),
            ("2.2.0", {"disable-usage-stats": None}),
            ("2.3.0", {"usage-stats": "off"}),
            ("3.3.5", {"usage-stats": "off"}),
        ],
    )
    def test_nothing_is_reported_home(self, version, expected):
        found = tgi_flags(version)
        assert {name: found[name] for name in found if "usage" in name} == expected

    def test_an_operator_may_choose_otherwise_and_the_flag_is_given_once(self):
        argv = command({}, {"name": "tgi", "args": {"usage-stats": "on"}}).argv
        assert argv.count("--usage-stats") == 1
        assert flags(argv)["usage-stats"] == "on"

    @pytest.mark.parametrize(("version", "has"), [("3.2.3", False), ("3.3.0", True), (None, True)])
    def test_the_metrics_port_moves_where_the_version_can(self, version, has):
        assert ("prometheus-port" in tgi_flags(version)) is has

    @pytest.mark.parametrize("first", [1024, 31_000, 64_000, 65_000])
    def test_no_two_replicas_share_a_port_or_a_socket(self, first):
        ports, sockets = [], []
        for port in range(first, first + 500):
            found = command({}, {"name": "tgi"}, port)
            ports += [port, *found.extra_ports]
            sockets.append(flags(found.argv)["shard-uds-path"])
        assert len(set(ports)) == 1500
        assert len(set(sockets)) == 500
        assert all(0 < port <= 65_535 for port in ports)

    @pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
    @pytest.mark.parametrize("place", ["config", "environment"])
    def test_a_token_travels_by_environment_under_both_names(self, name, place):
        env = {name: "hunter2"}
        engine = {"name": "tgi"} | ({"env": env} if place == "config" else {})
        found = command({}, engine, environ=env if place == "environment" else {})
        assert found.env["HF_TOKEN"] == found.env["HUGGING_FACE_HUB_TOKEN"] == "hunter2"
        assert "hunter2" not in " ".join(found.argv) + repr(found)

    def test_gpus_are_counted_as_the_driver_tools_show_them(self):
        found = [
            TgiEngine({}).command(spec, 31_000 + position, "127.0.0.1").env
            for position, spec in enumerate(specs({"replicas": 2}, "tgi"))
        ]
        assert [env["CUDA_VISIBLE_DEVICES"] for env in found] == ["0", "1"]
        assert {env["CUDA_DEVICE_ORDER"] for env in found} == {"PCI_BUS_ID"}


class TestSimulator:
    def test_whole_command(self):
        found = command(
            {"max_total_tokens": 512},
            {"version": "1.4.4", "args": {"speed": 0.5, "json-output": True}, "env": {"A": "1"}},
        )
        assert found.argv == (
            sys.executable, "-m", "launcher.simulator",
            "--host", "127.0.0.1",
            "--port", "31000",
            "--model-id", "org/m",
            "--version", "1.4.4",
            "--max-input-tokens", "511",
            "--max-total-tokens", "512",
            "--speed", "0.5",
            "--json-output",
        )  # fmt: skip
        assert (found.env, found.ready_path, found.extra_ports) == ({"A": "1"}, "/health", ())

    def test_a_flag_set_to_false_or_null_is_left_out(self):
        args = {"json-output": False, "speed": None}
        assert "--speed" not in command({}, {"args": args}).argv
        assert "--json-output" not in command({}, {"args": args}).argv

    def test_its_table_has_the_flags_the_program_has(self):
        done = subprocess.run(
            [sys.executable, "-m", "launcher.simulator", "--help"], capture_output=True, text=True
        )
        offered = set(re.findall(r"--([a-z][a-z-]+)", done.stdout)) - {"help"}
        set_by_launcher = set(simulator.RESERVED)
        assert set(simulator.FLAGS) | set_by_launcher == offered


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("3.3.5", (3, 3, 5)),
        ("v1.4.4", (1, 4, 4)),
        ("2.4.1-rocm", (2, 4, 1)),
        ("3.3.6-dev0", (3, 3, 6)),
        ("2.4", (2, 4, 9999)),
        (None, LATEST),
        ("latest", None),
        ("", None),
        ("3", None),
        ("3.3.5 ", None),
    ],
)
def test_versions(text, version):
    assert parse_version(text) == version


def test_a_version_without_patch_is_shown_as_written():
    assert show_version(parse_version("2.4")) == "2.4"
    assert show_version((2, 4, 1)) == "2.4.1"
