"""gs:// in this process's memory: what a driver of object storage does, as far as epath asks."""

from typing import Any

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class Storage(MemoryFileSystem):
    """Objects by name, "/bucket/name".

    Attributes:
      failures: what the next writes raise, one each, instead of writing.
    """

    protocol = "gs"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}
        self.pseudo_dirs = [""]
        self.failures: list[Exception] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("gs://", "/", 1))

    def objects(self) -> dict[str, bytes]:
        """All that is stored."""
        return {name: file.getvalue() for name, file in self.store.items()}

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb" and self.failures:
            raise self.failures.pop(0)
        return super()._open(path, mode, **options)


def object_storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Makes gs:// an empty storage until `monkeypatch` is undone."""
    storage = Storage()
    kind = type(backend.fsspec_backend)
    monkeypatch.setattr(kind, "_get_filesystem", lambda self, name: storage)
    return storage
