"""What can go wrong, one exception type per room, so that a front door prints one line.

Every message names the value given, the rule it broke and the nearest value that works.
"""


class TpuinferError(Exception):
    """Base of every failure a user can cause or meet; a front door exits with `exit_code`."""

    exit_code = 1


class ConfigError(TpuinferError):
    """A flag, a TOML entry or a model configuration that cannot be used."""

    exit_code = 2


class MeshError(TpuinferError):
    """A mesh that cannot be built here: shape, device count, rules, or a device held elsewhere."""

    exit_code = 3


class OutOfMemoryError(MeshError):
    """Weights, rings and programs take more than the devices have."""


class CheckpointError(TpuinferError):
    """A model that is missing, damaged, of an unknown kind, or could not be fetched."""

    exit_code = 4


class TokenizerError(TpuinferError):
    """A vocabulary or chat template that cannot be read, or text that it cannot render."""

    exit_code = 5


class RequestError(TpuinferError):
    """A request that cannot be served as asked; `param` names the offending parameter."""

    exit_code = 6

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RecompileError(TpuinferError):
    """A compile after warm-up in strict mode, or arguments that no program takes."""

    exit_code = 8
