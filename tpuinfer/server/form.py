"""A multipart form with one file in it, read piece by piece; nobody holds the file in memory."""

from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tpuinfer.server.failures import ApiError
from tpuinfer.server.fields import shown

_FIELD_BYTES = 2**10
_FILE = "file"
_FILENAME = "upload.jsonl"
_FILENAME_CHARACTERS = 255
_DISPOSITION = b"content-disposition"

Check = Callable[[str, str], None]
"""Called with the name and value of each field; refuses by raising."""


class Form:
    """Fed with the bytes of a body, has the fields, and the bytes of the file as they come.

    Each name may come once; `check` decides which there are, and what they may be.

    Attributes:
      fields: name -> value.
      filename: of the file, as the client calls it: never a path of ours. None before it came.
      pending: bytes of the file since it was last emptied.
    """

    def __init__(self, content_type: str, check: Check) -> None:
        """Raises ApiError: it is no multipart form."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise _broken("send it with the header Content-Type: multipart/form-data")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.pending = bytearray()
        self._check = check
        self._ended = False
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._text = bytearray()
        self._parser = self._made(boundary)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the body.

        Raises:
          ApiError: they are no form, or a field is refused.
        """
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _broken(str(error)) from None

    def end(self) -> None:
        """There is no more. Raises ApiError: the form is cut short, or the file is missing."""
        if not self._ended:
            raise _broken("it ends in the middle")
        if self.filename is None:
            message = "file is missing: it is required"
            raise ApiError(400, message, param=_FILE, code="missing_required_parameter")

    def _made(self, boundary: bytes) -> MultipartParser:
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": lambda data, start, end: self._header.extend(
                        data[start:end]
                    ),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._part_ends,
                    "on_end": self._all_ends,
                },
            )
        except FormParserError as error:
            raise _broken(str(error)) from None

    def _part_begins(self) -> None:
        self._headers = {}

    def _header_ends(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        kind, options = parse_options_header(self._headers.get(_DISPOSITION, b""))
        if kind != b"form-data" or b"name" not in options:
            raise _broken("a part has no name")
        name = options[b"name"].decode("utf-8", "replace")
        if name in self.fields or (name == _FILE and self.filename is not None):
            raise _refused(name, f"{shown(name)} is there twice: send it once", "invalid_value")
        if name == _FILE:
            if b"filename" not in options:
                message = "file is a text field: send it as a file, with a filename"
                raise _refused(name, message, "invalid_type")
            given = options[b"filename"].decode("utf-8", "replace")[:_FILENAME_CHARACTERS]
            self.filename = given or _FILENAME
        self._name = name
        self._text.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == _FILE:
            self.pending += data[start:end]
            return
        self._text += data[start:end]
        if len(self._text) > _FIELD_BYTES:
            message = f"{shown(self._name)} is too long: at most {_FIELD_BYTES} bytes"
            raise _refused(self._name, message, "invalid_value")

    def _part_ends(self) -> None:
        if self._name != _FILE:
            value = self._text.decode("utf-8", "replace")
            self._check(self._name, value)
            self.fields[self._name] = value

    def _all_ends(self) -> None:
        self._ended = True


def _broken(why: str) -> ApiError:
    return ApiError(400, f"the body is not a multipart form: {why}", code="invalid_body")


def _refused(param: str, message: str, code: str) -> ApiError:
    return ApiError(400, message, param=param, code=code)
