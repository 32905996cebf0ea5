"""The hub's access token: whether one is set, and has the form of one. It is never shown.

Nothing is asked of the hub: whether it accepts the token is only known at the first download.
"""

import re
from collections.abc import Iterator, Mapping

from launcher.checkup.base import Check, Finding, failed, passed, warned
from launcher.checkup.subject import Subject
from launcher.config import ModelConfig
from launcher.desired import files_are_here
from launcher.engines import ENGINES
from launcher.engines.model_source import TOKEN_VARIABLES, is_local

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
# Makers whose models ask for consent to a licence, most of them or all.
_GATED = re.compile(
    r"(meta-llama/|mistralai/|google/(gemma|shieldgemma|codegemma|paligemma|medgemma)|coherelabs/"
    r"|cohereforai/|bigcode/starcoder|databricks/dbrx|tiiuae/falcon-180b|stabilityai/|nvidia/llama"
    r"|black-forest-labs/)",
    re.IGNORECASE,
)
_SET_ONE = "export HF_TOKEN, made at https://huggingface.co/settings/tokens, where you start it"


def _token(subject: Subject) -> Iterator[Finding]:
    needs = list(_downloads(subject))
    if not needs:
        yield passed("not needed: all models are here")
        return
    findings: dict[Finding, None] = {}
    for model in needs:
        config = subject.config
        assert config is not None
        name, token = _found(config.engine_of(model).env, subject.environ)
        findings[_no_token(model) if token is None else _form(name, token)] = None
    yield from findings


def _downloads(subject: Subject) -> Iterator[ModelConfig]:
    config = subject.config
    assert config is not None
    specs = {spec.model: spec for spec in subject.specs}
    for model in config.models:
        spec = specs.get(model.served_name)
        if spec is None or is_local(model.id) or not ENGINES[spec.engine_name].downloads:
            continue
        if not files_are_here(spec, config):
            yield model


def _found(own_env: Mapping[str, str], environ: Mapping[str, str]) -> tuple[str, str | None]:
    """As engines are given it: the config's goes before the environment's."""
    for where, env in (("engine.env: ", own_env), ("", environ)):
        for name in TOKEN_VARIABLES:
            if env.get(name):
                return f"{where}{name}", env[name]
    return "", None


def _no_token(model: ModelConfig) -> Finding:
    if _GATED.match(model.id):
        found = (
            "no HF_TOKEN here, and its maker's models are mostly gated: the hub gives none without"
        )
        return warned(found, f"accept its licence on the hub, then {_SET_ONE}", about=model.id)
    return passed("no HF_TOKEN here; public models need none", about=model.id)


def _form(name: str, token: str) -> Finding:
    """Says what is wrong with it in words, and shows nothing of it."""
    if any(char.isspace() or not char.isprintable() for char in token):
        return failed(f"{name} has white space or a line end in it", f"{_SET_ONE}, in one word")
    if any(quote in token for quote in "\"'`"):
        return failed(f"{name} has quotes in it", "set it without: env files keep them")
    if not token.isascii():
        return failed(f"{name} has characters that no token has", _SET_ONE)
    if not _TOKEN.fullmatch(token):
        return warned(f"{name} does not look like a token of the hub: hf_ and letters", _SET_ONE)
    return passed(f"{name} is set and has the right form; only the hub knows if it is valid")


def _uses_hub(subject: Subject) -> bool:
    config = subject.config
    if config is None:
        return False
    return any(
        ENGINES[config.engine_of(model).name].downloads and not is_local(model.id)
        for model in config.models
    )


CHECKS = (Check("hub token", _token, _uses_hub, limit_s=60.0),)
