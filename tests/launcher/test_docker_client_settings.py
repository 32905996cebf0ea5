"""Which proxies containers get, from the settings of docker's own command line."""

import pytest

from launcher.docker.client_settings import proxies_of, read_proxies

URL = "unix:///var/run/docker.sock"
CORP = {"httpProxy": "http://me:secret@corp:3128", "noProxy": "localhost"}
BOTH = {
    "HTTP_PROXY": "http://me:secret@corp:3128",
    "http_proxy": "http://me:secret@corp:3128",
    "NO_PROXY": "localhost",
    "no_proxy": "localhost",
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"proxies": {"default": CORP}}, BOTH),
        ({"proxies": {URL: CORP, "default": {"httpProxy": "http://other"}}}, BOTH),
        ({"proxies": {URL: {}, "default": CORP}}, {}),
        ({"proxies": {"tcp://elsewhere:2376": CORP}}, {}),
        (
            {"proxies": {"default": {"allProxy": "socks5://s", "httpProxy": "", "more": "x"}}},
            {"ALL_PROXY": "socks5://s", "all_proxy": "socks5://s"},
        ),
        *(({"proxies": nonsense}, {}) for nonsense in (None, [], "x", {"default": "x"})),
        ([], {}),
    ],
)
def test_proxies_of_the_engine_come_before_the_default_ones(settings, expected):
    assert proxies_of(settings, URL) == expected


@pytest.mark.parametrize("text", [None, "", "{not json", "[]"])
def test_settings_that_are_not_there_or_cannot_be_read_give_none(tmp_path, monkeypatch, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    assert read_proxies(URL) == {}
