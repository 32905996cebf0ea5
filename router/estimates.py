"""What a pool has learned about sizes: characters per token, and how long answers get. Pure."""

MIN_CHARS_PER_TOKEN = 0.5
MAX_CHARS_PER_TOKEN = 12.0
WEIGHT = 0.02
FIRST_SAMPLES = 50
FIRST_OPEN_TOKENS = 512.0


class Estimates:
    """Running means, fed by what replies report; starts from English prose."""

    def __init__(self) -> None:
        self.chars_per_token = 4.0
        self.output_share = 1.0
        """Generated tokens over tokens allowed."""
        self.open_tokens = FIRST_OPEN_TOKENS
        """Generated tokens of a call that says no length."""
        self._chars = _Mean(4.0)
        self._share = _Mean(1.0)
        self._open = _Mean(FIRST_OPEN_TOKENS)

    def input_tokens(self, chars: int) -> int:
        """Tokens that so many characters are likely to be; at least 1."""
        return max(1, round(chars / self.chars_per_token))

    def prompt_seen(self, chars: int, tokens: int) -> None:
        if chars > 0 and tokens > 0:
            ratio = min(MAX_CHARS_PER_TOKEN, max(MIN_CHARS_PER_TOKEN, chars / tokens))
            self.chars_per_token = self._chars.add(ratio)

    def output_seen(self, allowed_tokens: int, generated_tokens: int) -> None:
        if allowed_tokens > 0 and generated_tokens > 0:
            self.output_share = self._share.add(min(1.0, generated_tokens / allowed_tokens))

    def open_output_seen(self, generated_tokens: int) -> None:
        if generated_tokens > 0:
            self.open_tokens = self._open.add(generated_tokens)


class _Mean:
    """A plain mean at first, an exponential one later."""

    def __init__(self, start: float) -> None:
        self._value = start
        self._count = 1

    def add(self, sample: float) -> float:
        self._count = min(self._count + 1, FIRST_SAMPLES)
        self._value += max(WEIGHT, 1.0 / self._count) * (sample - self._value)
        return self._value
