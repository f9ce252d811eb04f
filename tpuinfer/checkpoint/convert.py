"""A model of any kind -> a checkpoint directory, tensor by tensor."""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tpuinfer.checkpoint import layout, staging
from tpuinfer.checkpoint.paths import is_remote, locate
from tpuinfer.checkpoint.progress import Progress, silent
from tpuinfer.checkpoint.sources import Codes, Source, open_source
from tpuinfer.errors import CheckpointError, ConfigError
from tpuinfer.model_config import EncoderConfig
from tpuinfer.models import blueprint, registry
from tpuinfer.quant.fit import same_codes
from tpuinfer.quant.qarray import QArray
from tpuinfer.quant.schemes import AUTO, NONE, PUBLISHED, Scheme, Schemes

_log = logging.getLogger(__name__)


def convert(
    source: str | Path,
    target: str | Path,
    dtype: str = "auto",
    progress: Progress = silent,
    *,
    sha256: str | None = None,
    weights: str = AUTO,
) -> Path:
    """Convert a model into the checkpoint directory `target`, which must not exist or be empty.

    The host holds at most twice the largest parameter and some 600 MB beside it. The directory
    appears whole or not at all; a target that holds this very conversion already is left as it is,
    so that two processes may ask for the same one.

    Args:
      source: a GGUF file, a Hugging Face directory of safetensors, or a checkpoint directory.
      target: a local path.
      dtype: what parameters are stored as: bfloat16, float32, which rounds nothing, or auto: as
        each is published, and bfloat16 for a GGUF file and for what is published in blocks.
      progress: told how many bytes of parameters are done.
      sha256: of the source, when the caller knows it.
      weights: what is quantised how, as `quant.schemes` says; auto: what a checkpoint directory has
        quantised stays so, and what was published quantised is dequantised; published: neither is.

    Returns:
      The absolute path of the directory.

    Raises:
      CheckpointError: the source is damaged or not supported, or the target is taken, remote or
        cannot be written.
      ConfigError: the source's config asks for what is not supported.
      TokenizerError: a GGUF file's vocabulary is not supported.
    """
    check_target(target)
    model = open_source(locate(source), dtype, progress, sha256)
    chosen = choose(model, weights)
    target = locate(target)
    with staging.staged(target) as work:
        if _is_done(target, model, chosen):
            return target
        build = work / "build"
        build.mkdir()
        write_texts(build, model)
        _write_params(build, model, chosen, progress)
        layout.write_sums(build, progress)
        staging.publish(build, target)
    return target


def check_target(target: str | Path) -> None:
    """Refuse a target in object storage.

    Raises:
      CheckpointError: it is one.
    """
    if is_remote(target):
        raise CheckpointError(
            f"{target}: conversion writes to a local directory; copy it to object storage after"
        )


def check_free(target: Path) -> None:
    """Refuse a target that holds anything.

    Raises:
      CheckpointError: it does.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{target}: already exists; choose another directory or remove it")


def write_texts(build: Path, model: Source) -> None:
    """Every file that lies beside the weights."""
    for name, data in model.texts.items():
        (build / name).parent.mkdir(exist_ok=True)
        (build / name).write_bytes(data)


def choose(model: Source, weights: str) -> dict[str, Codes]:
    """What is written quantised, and by which scheme; says in one line what is dequantised.

    Raises:
      ConfigError: the text is no table of schemes.
    """
    if weights == PUBLISHED or (weights == AUTO and model.own):
        return dict(model.codes)
    chosen: dict[str, Codes] = {}
    if weights not in (AUTO, NONE):
        config = registry.read_config(model.config)
        if isinstance(config, EncoderConfig):
            raise ConfigError(
                f"weights is {weights!r}: an encoder's are not quantised; nearest: auto"
            )
        table = Schemes.parse(weights).resolve(blueprint.weights(registry.build(config)))
        chosen = {name: _codes(model, name, scheme) for name, scheme in table.items()}
    kinds = Counter(
        str(codes.scheme)
        for name, codes in model.codes.items()
        if not (model.own and name in chosen and same_codes(codes.scheme, chosen[name].scheme))
    )
    if kinds:
        said = ", ".join(f"{count} as {scheme}" for scheme, count in kinds.most_common())
        more = "" if model.own else "; --weights published keeps them"
        _log.info("%s: quantised weights (%s) are dequantised%s", model.name, said, more)
    return chosen


def _codes(model: Source, name: str, scheme: Scheme) -> Codes:
    """A parameter by a scheme: out of the codes that our own checkpoint has, or out of values."""
    stored = model.codes.get(name)
    if not model.own or stored is None or stored.read is None:
        return Codes(scheme)
    return Codes(scheme, functools.partial(_again, stored.read, scheme, model.params[name].shape))


def _again(read: Callable[[], QArray], scheme: Scheme, shape: tuple[int, ...]) -> QArray:
    from tpuinfer.checkpoint import quantised

    return quantised.again_on_host(read(), scheme, shape)


def stream(
    model: Source, progress: Progress, quantise: Callable[[str], Any] | None = None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every parameter in its turn, so that no two are held by the one who reads them.

    Args:
      quantise: name -> what is stored of it by name, or None where it is stored as it is.
    """
    done, total = 0, sum(param.nbytes for param in model.params.values())
    for name, param in model.params.items():
        progress("convert", done, total)
        if quantise is not None and (parts := quantise(name)) is not None:
            yield from parts.items()
        else:
            yield name, param.read()
        done += param.nbytes
    progress("convert", done, total)


def _write_params(
    build: Path, model: Source, chosen: Mapping[str, Codes], progress: Progress
) -> None:
    """The Orbax tree and the manifest."""
    from tpuinfer.checkpoint import orbax_store, quantised

    shapes = {name: (param.shape, param.dtype) for name, param in model.params.items()}
    schemes = {}
    for name, codes in chosen.items():
        shape, contracted = shapes.pop(name)[0], _contracted(model)[name]
        shapes |= quantised.abstract_parts(name, codes.scheme, shape, contracted)
        schemes[name] = (codes.scheme, shape, contracted)

    def quantise(name: str) -> dict[str, NDArray[Any]] | None:
        if name not in chosen:
            return None
        codes = chosen[name]
        if codes.read is not None:
            return quantised.stored_parts(name, codes.read())
        values = model.params[name].read()
        made = quantised.on_host(values, codes.scheme, schemes[name][2])
        return quantised.stored_parts(name, made)

    orbax_store.save(build / layout.PARAMS, stream(model, progress, quantise))
    manifest = layout.Manifest(
        kind=model.kind,
        name=model.name,
        sha256=model.sha256,
        dtype=model.dtype,
        params={name: (shape, dtype.name) for name, (shape, dtype) in shapes.items()},
        files=layout.param_files(build),
        schemes=schemes,
    )
    layout.write_json(build / layout.MANIFEST, manifest.to_json())


def _contracted(model: Source) -> dict[str, int]:
    """How many last dimensions of each parameter are contracted."""
    config = registry.read_config(model.config)
    return {name: w.contracted for name, w in blueprint.weights(registry.build(config)).items()}


def _is_done(target: Path, model: Source, chosen: Mapping[str, Codes]) -> bool:
    """Whether the target is this conversion; refuses one that holds anything else."""
    if target.is_dir() and layout.is_whole(target):
        manifest = layout.read_manifest(target)
        kept = {name: scheme for name, (scheme, _, _) in manifest.schemes.items()}
        wanted = {name: codes.scheme for name, codes in chosen.items()}
        same = (manifest.sha256, manifest.dtype) == (model.sha256, model.dtype)
        if same and kept == wanted:
            return True
        said = [manifest.dtype]
        said += [f"{n} as {kind}" for kind, n in Counter(map(str, kept.values())).most_common()]
        raise CheckpointError(
            f"{target}: already holds {manifest.name} as {', '.join(said)}; choose another "
            "directory"
        )
    check_free(target)
    return False
