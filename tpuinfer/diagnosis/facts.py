"""All that checks may look at, as data. Whoever collects it may leave a field at its default."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Needed:
    """What one package asks of another: "flax" must be "<0.13,>=0.12", says "tpuinfer"."""

    name: str
    specifier: str
    by: str


@dataclass(frozen=True)
class Device:
    """One device of jax's.

    Attributes:
      kind: jax's device_kind.
      coords: place on the slice's torus; None for what has none.
      bytes_limit: memory that programs may use; None = not told.
      bytes_in_use: of it, by the process that asked.
    """

    index: int
    platform: str
    kind: str
    process: int = 0
    coords: tuple[int, ...] | None = None
    bytes_limit: int | None = None
    bytes_in_use: int | None = None


@dataclass(frozen=True)
class Probed:
    """What became of asking jax for its devices.

    Attributes:
      devices: all of them, of all processes; empty if there was an error.
      processes: how many processes jax knows.
      error: why there are none, in one line; None = there are.
      seconds: that it took.
      timed_out: it did not answer; then `error` says so.
    """

    devices: tuple[Device, ...] = ()
    processes: int = 1
    error: str | None = None
    seconds: float = 0.0
    timed_out: bool = False


@dataclass(frozen=True)
class Holder:
    """A process, not ours, that has a file of an accelerator open."""

    path: str
    pid: int
    command: str


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver shows it: bytes in all, and in use by whomever."""

    name: str
    total: int
    used: int


@dataclass(frozen=True)
class Folder:
    """Where something is kept.

    Attributes:
      path: a local path, or one in object storage, of which only the name is known.
      exists: it is there already.
      writable: it, or the nearest folder above it, can be written.
      free: bytes left on its disk; None = not known.
      entries, bytes: what it holds; counted where a check needs it.
    """

    path: str
    exists: bool = True
    writable: bool = True
    free: int | None = None
    entries: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Limits:
    """What the system gives a process; None = no limit, or not known.

    Attributes:
      files: open files, of which a server needs one a connection.
      files_most: what `files` may be raised to.
      maps: pieces of memory (vm.max_map_count).
      address_space: bytes.
    """

    files: int | None = None
    files_most: int | None = None
    maps: int | None = None
    address_space: int | None = None


@dataclass(frozen=True)
class Facts:
    """A machine, and what is installed on it.

    Attributes:
      python: such as "3.11.9".
      versions: distribution -> version; None = not installed.
      needed: what packages ask of others, those of jax's extra `tpu` among them.
      environ: variables that change what jax does, as they were when the process began.
      tpu_files, gpu_files: device files, as paths.
      pci_tpus: cards on the bus that may be TPUs.
      probed: what jax says.
      holders: other processes that hold accelerators.
      hidden: how many processes could not be looked into.
      lock_owner: user id of libtpu's lock file; None = there is none.
      user: our user id.
      gpus: what the driver says of GPUs' memory.
      cores: CPUs that this process may use.
      memory, memory_free: of the host, in bytes.
      compiled: the cache of compiled programs; None = could not be found out.
      models: the cache of models.
      limits: of this process.
      huge_pages: what /sys says of transparent huge pages; empty = not known.
      behind: seconds that the clock is behind the newest file of this package; 0 = it is not.
    """

    python: str
    versions: Mapping[str, str | None]
    needed: tuple[Needed, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    tpu_files: tuple[str, ...] = ()
    gpu_files: tuple[str, ...] = ()
    pci_tpus: int = 0
    probed: Probed = Probed()
    holders: tuple[Holder, ...] = ()
    hidden: int = 0
    lock_owner: int | None = None
    user: int = 0
    gpus: tuple[Gpu, ...] = ()
    cores: int = 1
    memory: int | None = None
    memory_free: int | None = None
    compiled: Folder | None = None
    models: Folder | None = None
    limits: Limits = Limits()
    huge_pages: str = ""
    behind: float = 0.0

    @property
    def has_tpu(self) -> bool:
        """True where the machine's files show a TPU: a file of /dev/vfio alone may be another's."""
        accel = any("/accel" in path for path in self.tpu_files)
        return bool(self.pci_tpus) or accel or (bool(self.tpu_files) and self._tpu_is_named)

    @property
    def _tpu_is_named(self) -> bool:
        return any(name.startswith("TPU_") for name in self.environ)

    @property
    def platform(self) -> str:
        """Of jax's devices; empty if there are none."""
        return self.probed.devices[0].platform if self.probed.devices else ""
