"""An uploaded form, read as it comes in: the file goes to storage piece by piece, whatever its size and its place."""

from collections.abc import AsyncIterator, Mapping

import msgspec

from app.errors import BodyTooLargeError, InvalidRequestError
from app.services.files import Making
from app.wire.form import FormReader
from app.wire.parsing import decode

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
SHORTEST, LONGEST = 3600, 2_592_000  # seconds that a file may be asked to live
_MOST_FIELD_BYTES = 16 * 1024
_MOST_PARTS = 64
_MOST_FILENAME = 255
_FORM_BYTES = 2 * 1024**2  # beside the file: no form that is taken has more
_EXPIRY = msgspec.json.Decoder(dict[str, str | int])


class Form(FormReader):
    """A multipart form. `feed` takes its bytes as they come, and returns those of the part named `file`.

    Attributes:
        fields: Every other part.
        filename: None: no file has begun.
    """

    def __init__(self, content_type: str) -> None:
        super().__init__(content_type)
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._parts = 0
        self._name = ""
        self._text: list[bytes] | None = None  # of the part that is no file
        self._file: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Raises: InvalidRequestError: Malformed, or too much of it."""
        self.write(data)
        found, self._file = self._file, []
        return found

    def begin(self, name: str, filename: bytes | None) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise InvalidRequestError(f"the form has more than {_MOST_PARTS} parts")
        self._name = name
        if name != "file":
            self._text = []
        elif self.filename is not None:
            raise InvalidRequestError("the form holds 'file' twice", param="file")
        else:
            self._text = None
            self.filename = _plain(filename or b"")

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._text is None:
            self._file.append(data[start:end])
            return
        self._text.append(data[start:end])
        if sum(map(len, self._text)) > _MOST_FIELD_BYTES:
            message = f"the form field {self._name!r} is longer than {_MOST_FIELD_BYTES} bytes"
            raise InvalidRequestError(message, param=self._name)

    def finish(self) -> None:
        if self._text is None:
            return
        if self._name in self.fields:
            raise InvalidRequestError(f"the form holds {self._name!r} twice", param=self._name)
        try:
            self.fields[self._name] = b"".join(self._text).decode()
        except UnicodeDecodeError:
            raise InvalidRequestError(f"the form field {self._name!r} is not UTF-8", param=self._name) from None


def _plain(filename: bytes) -> str:
    """Returns: The name without folders, control characters and excess; `upload` if nothing is left."""
    last = filename.decode(errors="replace").replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:_MOST_FILENAME] or "upload"


async def receive(pieces: AsyncIterator[bytes], form: Form, making: Making, limit: int) -> None:
    """Reads a form to its end: its file into `making`, and what is said of it. What is wrong is said early.

    Raises:
        BodyTooLargeError: The file exceeds `limit` bytes.
        InvalidRequestError: The form is malformed, or lacks something.
    """
    beside = 0
    async for piece in pieces:
        found = form.feed(piece)
        beside += len(piece)
        for part in found:
            beside -= len(part)
            if making.size + len(part) > limit:
                raise too_large(limit)
            await making.write(part)
        if beside > _FORM_BYTES:
            raise InvalidRequestError(f"the form has more than {_FORM_BYTES} bytes beside its file")
        if "purpose" in form.fields:
            purpose_of(form.fields)
    form.end()
    making.purpose = purpose_of(form.fields)
    making.expires_after = lifetime_of(form.fields)
    if form.filename is None:
        raise InvalidRequestError("the form holds no file", param="file")
    making.filename = form.filename


def too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the file is larger than {limit} bytes (max_file_bytes)")


def too_long(content_length: str, limit: int) -> bool:
    """Whether the form, as long as it says it is, must hold a file of more than `limit` bytes."""
    return content_length.isdecimal() and int(content_length) > limit + _FORM_BYTES


def purpose_of(fields: Mapping[str, str]) -> str:
    """Raises: InvalidRequestError: No purpose, or an unknown one."""
    if "purpose" not in fields:
        raise InvalidRequestError("you must provide a purpose", param="purpose")
    if fields["purpose"] not in PURPOSES:
        raise InvalidRequestError(f"must be one of: {', '.join(PURPOSES)}", param="purpose")
    return fields["purpose"]


def lifetime_of(fields: Mapping[str, str]) -> int | None:
    """Reads `expires_after` in each of its spellings: `[anchor]`, `.anchor`, or all of it as JSON.

    Returns: Seconds; None: not said.
    Raises: InvalidRequestError: Not from `created_at`, or not a number of seconds that is allowed.
    """
    said: dict[str, str | int] = {}
    if "expires_after" in fields:
        said = decode(_EXPIRY, fields["expires_after"].encode(), "expires_after")
    for name in ("anchor", "seconds"):
        for spelling in (f"expires_after[{name}]", f"expires_after.{name}"):
            if spelling in fields:
                said[name] = fields[spelling]
    if not said and "expires_after" not in fields:
        return None
    if said.get("anchor") != "created_at":
        raise InvalidRequestError("must be created_at", param="expires_after.anchor")
    text = str(said.get("seconds", ""))
    seconds = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not SHORTEST <= seconds <= LONGEST:
        message = f"must be a whole number of seconds from {SHORTEST} to {LONGEST}"
        raise InvalidRequestError(message, param="expires_after.seconds")
    return seconds
