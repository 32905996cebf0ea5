"""The simulator's streams as a function: a request's body in, all its events out; no HTTP, no time.

What a replica would send, for tests of what is done with it.
"""

import secrets

import orjson

from launcher.simulator.chat_template import templated
from launcher.simulator.era import era_of
from launcher.simulator.generation import Sequence
from launcher.simulator.parameters import check, read_parameters
from launcher.simulator.routes.chat import _include_usage, _parameters
from launcher.simulator.routes.completions import _parameters as completion_parameters
from launcher.simulator.settings import Limits
from launcher.simulator.tokens_bpe import BpeModel
from launcher.simulator.tokens_text import TextModel
from launcher.simulator.wire import TgiStream
from launcher.simulator.wire_openai import ChatStream, CompletionStream

MODEL_ID = "simulated/model"
TOTAL_TOKENS = 4096


class PureTgi:
    def __init__(self, version, token_model="text", eos_rate=0.0):
        self.era = era_of(version)
        self.model = {"text": TextModel, "bpe": BpeModel}[token_model](eos_rate)
        self.limits = Limits(128, 2, 4, 5, TOTAL_TOKENS - 1, TOTAL_TOKENS, 4, 2_000_000)
        self.asked = []

    @property
    def version(self):
        return tuple(int(part) for part in self.era.version.split("."))

    def events(self, path, body):
        """The events of a streamed call, [DONE] included."""
        body = orjson.loads(body) if isinstance(body, bytes) else body
        self.asked.append(body)
        prompt, parameters, form = self._form(path, body)
        ask = check(prompt, parameters, self.era, self.limits, self.model)
        seed = None
        if parameters.samples:
            seed = secrets.randbits(64) if parameters.seed is None else parameters.seed
        sequence = Sequence(ask, seed, self.model, self.era, None)
        sent = []
        while sequence.finish_reason is None:
            token = sequence.advance()
            if sequence.finish_reason:
                sequence.begin_next_slice(self.limits.max_total_tokens)
            data = form.token(sequence, token)
            sent += [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]
        end = form.end()
        return [*sent, end] if end else sent

    def tokenize(self, path, body):
        body = orjson.loads(body)
        if path == "/chat_tokenize":
            pieces = self.model.pieces(templated(body["messages"], self.era))
            return orjson.dumps({"tokenize_response": [list(piece) for piece in pieces]})
        return orjson.dumps([list(piece) for piece in self.model.pieces(body["inputs"])])

    def _form(self, path, body):
        if path == "/v1/chat/completions":
            prompt = templated(body["messages"], self.era)
            form = ChatStream(self.era, MODEL_ID, _include_usage(body), False)
            return prompt, _parameters(body, self.era), form
        if path == "/v1/completions":
            form = CompletionStream(self.era, MODEL_ID, 0)
            return body["prompt"], completion_parameters(body, self.era), form
        parameters = read_parameters(body, self.era)
        asked = parameters.return_full_text
        form = TgiStream(self.era, path == "/" if asked is None else asked)
        return body["inputs"], parameters, form
