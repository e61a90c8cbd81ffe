"""Multipart forms (RFC 7578), sans I/O: what all that read one have in common."""

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.errors import InvalidRequestError


class FormReader:
    """Reads a form's bytes; what becomes of its parts is a subclass's: `begin`, `data`, `finish`.

    Args: content_type: With the boundary.
    Raises: InvalidRequestError: It is no form's.
    """

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type if content_type.isascii() else "")
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise InvalidRequestError("this endpoint takes multipart/form-data with a boundary", param="content-type")
        self._ended = False
        self._header = self._value = self._disposition = b""
        try:
            self._parser = MultipartParser(options[b"boundary"], self._callbacks())  # type: ignore[arg-type]
        except FormParserError as error:
            raise _malformed(error) from None

    def begin(self, name: str, filename: bytes | None) -> None:
        """A part begins. Args: filename: None: it is no file."""

    def data(self, data: bytes, start: int, end: int) -> None:
        """`data[start:end]` belongs to the part; `data` is what was written."""

    def finish(self) -> None:
        """The part is whole."""

    def write(self, data: bytes) -> None:
        """Raises: InvalidRequestError: It is malformed."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(error) from None

    def end(self) -> None:
        """Raises: InvalidRequestError: There should be more."""
        if not self._ended:
            raise InvalidRequestError("the multipart body ends before its last boundary")

    def _callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._part,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers,
            "on_part_data": self.data,
            "on_part_end": self.finish,
            "on_end": self._end,
        }

    def _part(self) -> None:
        self._disposition = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self.begin(options.get(b"name", b"").decode(errors="replace"), options.get(b"filename"))

    def _end(self) -> None:
        self._ended = True


def _malformed(error: FormParserError) -> InvalidRequestError:
    return InvalidRequestError(f"the multipart body is malformed: {error}")
