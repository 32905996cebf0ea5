"""`launcher key`: what it prints where, and that the router lets in what it made."""

import re
from hashlib import sha256

import pytest
import yaml

from launcher.commands import key
from router.config import RouterConfig
from router.errors import ConfigError


def test_the_key_is_on_standard_output_and_its_hash_is_a_config(capsys):
    assert key.run("team-a") == 0
    out, err = capsys.readouterr()
    made = out.removesuffix("\n")
    assert re.fullmatch(r"fleet-[A-Za-z0-9_-]{43}", made)
    assert made not in err
    lines = err[err.index("router:") : err.index("Applications")]
    [config] = RouterConfig.model_validate(yaml.safe_load(lines)["router"]).keys
    assert (config.name, config.hash) == ("team-a", f"sha256:{sha256(made.encode()).hexdigest()}")


def test_no_two_are_alike(capsys):
    for _ in range(50):
        key.run("a")
    assert len(set(capsys.readouterr().out.split())) == 50


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "é", "x" * 64, "a\n"])
def test_a_name_that_no_config_takes_makes_no_key(name, capsys):
    with pytest.raises(ConfigError):
        key.run(name)
    assert capsys.readouterr().out == ""
