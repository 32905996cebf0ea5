"""What vLLM streams, as a function: chunks of one or several tokens, a role chunk before a chat.

The text is the simulator's, so it goes on where a prompt with a part of it ends. As with the real
one, `continue_final_message` continues the last message, whose end the template trims.
"""

import itertools

import orjson

from launcher.simulator.tokens_text import TextModel

IDS = itertools.count(1)


class PureVllm:
    def __init__(self, per_chunk=2):
        self.per_chunk = per_chunk
        self.asked = []
        self._model = TextModel()

    def events(self, path, body):
        body = orjson.loads(body) if isinstance(body, bytes) else body
        self.asked.append(body)
        is_chat = path.endswith("chat/completions")
        prompt = templated(body) if is_chat else body["prompt"]
        cursor = self._model.cursor(prompt, None)
        texts = [cursor.advance().text for _ in range(body["max_tokens"])]
        sent = [chunk("", is_chat, role="assistant")] if is_chat else []
        groups = [texts[i : i + self.per_chunk] for i in range(0, len(texts), self.per_chunk)]
        for group in groups:
            finish = "length" if group is groups[-1] else None
            sent.append(chunk("".join(group), is_chat, finish=finish))
        if (body.get("stream_options") or {}).get("include_usage"):
            sent.append(usage_chunk(is_chat, self._model.count(prompt), len(texts)))
        number = next(IDS)
        for one in sent:
            one["id"] = f"cmpl-{number}"
        return [b"data: " + orjson.dumps(one) + b"\n\n" for one in sent] + [b"data: [DONE]\n\n"]

    def tokenize(self, body):
        text = orjson.loads(body)["prompt"]
        return orjson.dumps({"count": self._model.count(text), "max_model_len": 4096})


def templated(body):
    turns = [f"<|{m['role']}|>\n{m['content']}" for m in body["messages"]]
    text = "\n".join(turns)
    if body.get("continue_final_message"):
        assert not body["add_generation_prompt"], "vLLM refuses both at once"
        return text.rstrip()
    return f"{text}\n<|assistant|>\n"


def chunk(text, is_chat, *, role=None, finish=None):
    delta = {"content": text} if role is None else {"role": role, "content": text}
    said = {"delta": delta} if is_chat else {"text": text}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
    name = "chat.completion.chunk" if is_chat else "text_completion"
    return {"id": "", "object": name, "created": 1, "model": "served", "choices": [choice]}


def usage_chunk(is_chat, prompt, completion):
    one = chunk("", is_chat)
    told = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {**one, "choices": [], "usage": {**told, "total_tokens": prompt + completion}}
