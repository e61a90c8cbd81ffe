"""What a call will cost in tokens, before anybody knows: learnt per model from what the last ones cost."""

_LEARNING = 0.05
_BYTES_A_TOKEN = 4.0
_FIRST_GUESS = 200.0
_MOST_TEXT = 65_536  # bytes: what is larger is mostly pictures, which cost few tokens


class TokenEstimate:
    """Moving averages of prompt tokens a byte and of the answer's tokens."""

    __slots__ = ("output", "tokens_a_byte")

    def __init__(self) -> None:
        self.tokens_a_byte = 1 / _BYTES_A_TOKEN
        self.output = _FIRST_GUESS

    def of(self, size: int, most: int | None) -> float:
        """Args:
            size: Bytes of the request.
            most: The answer's tokens that the request allows; 0: there is none to come (embeddings).
        Returns:
            Tokens to reserve.
        """
        output = self.output if most is None else min(self.output, most)
        return max(1.0, min(size, _MOST_TEXT) * self.tokens_a_byte + output)

    def learn(self, size: int, prompt: float, output: float) -> None:
        """A reply's `usage` said what it was."""
        if 0 < size <= _MOST_TEXT:
            self.tokens_a_byte += _LEARNING * (prompt / size - self.tokens_a_byte)
        if output > 0:
            self.output += _LEARNING * (output - self.output)
