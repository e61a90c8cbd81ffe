"""A batch's input file: its lines, and what is wrong with them."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from app.errors import InvalidRequestError
from app.wire.endpoints import BY_PATH
from app.wire.line_scanner import LineScanner, Scanned, split
from app.wire.request import Peek, peek

__all__ = ["Checker", "Line", "LineError", "LineScanner", "Scanned", "read_line", "split"]

_MOST_ERRORS = 100
_MOST_MODELS = 65
_MISSING = re.compile(r"missing required field `(\w+)`")
_FIELD = re.compile(r"at `\$\.(\w+)")


class Line(msgspec.Struct, kw_only=True):
    """A line of the input file."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    url: str
    method: Literal["POST"] = "POST"
    body: Raw


class LineError(Exception):
    """What is wrong with a line, in OpenAI's words.

    Args:
        code: One of those of the batch object's `errors`.
        param: The field at fault, as `body.model`.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


_LINE = msgspec.json.Decoder(Line)
_RAW = msgspec.json.Decoder(Raw)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])


def read_line(text: bytes, endpoint: str) -> Line:
    """Args: endpoint: The batch's; with or without `/v1`.

    Raises: LineError: The line cannot be run.
    """
    return _read(text, endpoint)[0]


def _read(text: bytes, endpoint: str) -> tuple[Line, Peek]:
    try:
        line = _LINE.decode(text)
        if not text.isascii():  # msgspec does not look into the strings that it skips
            text.decode()
    except msgspec.ValidationError as error:
        raise _wrong_fields(text, str(error)) from None
    except UnicodeDecodeError:
        raise LineError("invalid_json_line", "the line is not UTF-8") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _not_json(error) from None
    path = endpoint.removeprefix("/v1")
    if line.url.removeprefix("/v1") != path:
        message = f"the url {line.url[:200]!r} is not the batch's endpoint {endpoint!r}"
        raise LineError("url_mismatch", message, "url")
    return line, _peek(path, bytes(line.body))


def _not_json(error: Exception) -> LineError:
    why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return LineError("invalid_json_line", f"the line is not valid JSON: {why}")


def _wrong_fields(text: bytes, message: str) -> LineError:
    try:
        _FIELDS.decode(text)
    except msgspec.ValidationError:
        return LineError("invalid_json_line", "the line is not a JSON object")
    except (msgspec.DecodeError, RecursionError) as error:  # behind the field that is wrong
        return _not_json(error)
    except UnicodeDecodeError:
        return LineError("invalid_json_line", "the line is not UTF-8")
    if missing := _MISSING.search(message):
        param = missing.group(1)
        return LineError("missing_required_parameter", f"the line has no {param}", param)
    field = _FIELD.search(message)
    return LineError("invalid_request", message.partition(" - at ")[0], field and field.group(1))


def _peek(path: str, body: bytes) -> Peek:
    try:
        seen = peek(BY_PATH[path], body)
    except InvalidRequestError as error:
        param = f"body.{error.param}" if error.param else "body"
        if error.param == "model" and bytes(_FIELDS.decode(body).get("model", b'""')) == b'""':
            raise LineError("missing_required_parameter", error.message, param) from None
        raise LineError("invalid_request", error.message, param) from None
    if seen.stream:
        raise LineError("invalid_request", "a batch's replies cannot be streamed", "body.stream")
    return seen


class Checker:
    """Checks the lines of a whole file.

    Args:
        endpoint: The batch's.
        may_use: Whether the batch's key may use a model; None: the line names none.
        most_lines: That a file may have.

    Attributes:
        lines: Seen so far, the wrong ones included.
        wrong: Errors so far.
        errors: The first of them, as the batch object shows them.
        models: That the lines name, and the first line of each; up to so many.
    """

    def __init__(self, endpoint: str, may_use: Callable[[str | None], bool], most_lines: int) -> None:
        self._endpoint = endpoint
        self._may_use = may_use
        self._most_lines = most_lines
        self._seen: set[int] = set()  # hashes: a million ids must fit
        self.lines = self.wrong = 0
        self.errors: list[dict[str, Any]] = []
        self.models: dict[str, int] = {}

    def see(self, scanned: Scanned) -> Line | None:
        """Returns: The line, or None: it is wrong, or one too many."""
        self.lines += 1
        if self.lines > self._most_lines:
            if self.lines == self._most_lines + 1:
                self._add(LineError("too_many_tasks", f"the file has more than {self._most_lines} lines"), None)
            return None
        try:
            return self._checked(scanned.text, scanned.number)
        except LineError as error:
            self._add(error, scanned.number)
            return None

    def finish(self) -> None:
        """The file is over."""
        if self.lines == 0:
            self._add(LineError("empty_file", "the file has no lines"), None)

    def _checked(self, text: bytes | None, number: int) -> Line:
        if text is None:
            raise LineError("invalid_request", "the line is too long (max_line_bytes)")
        line, seen = _read(text, self._endpoint)
        known = hash(line.custom_id)
        if known in self._seen:
            raise LineError("duplicate_custom_id", f"duplicate custom_id {line.custom_id!r}", "custom_id")
        self._seen.add(known)
        if seen.model is None or seen.model not in self.models:
            self._check_model(seen.model, number)
        return line

    def _check_model(self, model: str | None, number: int) -> None:
        if model is not None and "\0" in model:
            raise LineError("invalid_request", "a model's name holds no NUL", "body.model")
        if not self._may_use(model):
            named = "without a model" if model is None else f"with the model {model[:200]!r}"
            raise LineError("model_not_found", f"this key may not call {named}", "body.model")
        if model is not None and len(self.models) < _MOST_MODELS:
            self.models[model] = number

    def _add(self, error: LineError, number: int | None) -> None:
        self.wrong += 1
        if len(self.errors) < _MOST_ERRORS:
            self.errors.append({"code": error.code, "line": number, "message": error.message, "param": error.param})
