"""`LLM`: the engine as three lines of Python. Names follow vLLM's where they fit."""

import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from tpuinfer.checkpoint.progress import silent
from tpuinfer.config import EngineConfig
from tpuinfer.engine import build, encoder, footprint
from tpuinfer.engine.accept import check_text
from tpuinfer.engine.calls import Asked, Calls, Listener, answer_all, stream
from tpuinfer.engine.choices import split
from tpuinfer.engine.device import DeviceRunner
from tpuinfer.engine.embed import Embedder, Vector
from tpuinfer.engine.engine import Engine
from tpuinfer.engine.footprint import Share
from tpuinfer.engine.plan import Plan
from tpuinfer.engine.prompts import Prompt, as_list, paired, per_prompt
from tpuinfer.engine.reload import as_planned
from tpuinfer.engine.request import Constraint, RequestOutput, SamplingParams
from tpuinfer.errors import ConfigError, RequestError
from tpuinfer.programs.manifest import Entry
from tpuinfer.sharding.report import Placement
from tpuinfer.sharding.rules import ShardingRules

if TYPE_CHECKING:
    from tpuinfer.grammar.compiler import GrammarCompiler

Message = Mapping[str, Any]
Answers = Generator[RequestOutput, None, None]

T = TypeVar("T")

_UNBOUNDED = 2**31
"""Waiting requests of an offline run: the caller's list is the bound."""


class LLM:
    """A model on a mesh, ready to generate, or an encoder, ready to embed.

    >>> llm = LLM("smollm2-135m-instruct", mesh="2x4")            # doctest: +SKIP
    >>> llm.generate(["The sky is"], SamplingParams(temperature=0))[0].outputs[0].text

    Attributes:
      plan: what was decided about sizes and places. tokenizer: the model's own.
    """

    def __init__(
        self,
        model: str | Path = "smollm2-135m-instruct",
        *,
        mesh: str | int = 1,
        rules: str | Path | ShardingRules | None = None,
        dtype: str = "auto",
        weights: str = "auto",
        slots: int | str = 8,
        context: int | str | None = None,
        chat_template: str | Path | None = None,
        cache_dir: str | Path | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        **engine: Any,
    ) -> None:
        """Load and compile.

        Args:
          model: a catalogue name, a checkpoint directory, or a GGUF file.
          mesh: 8, "2x4" or "data=2,model=4"; on the CPU the devices are simulated.
          rules: a ShardingRules table or a TOML file with one; None = the default table.
          dtype: of weights and activations: auto, bfloat16 or float32; of an encoder auto is
            float32.
          weights: how they are kept: auto (as stored), none, published, int8, w8a8, int4, fp8, ...
            as `--weights` takes it.
          slots: requests that run at once: N, "NxLENGTH" with the length of each one's ring, or
            several classes, such as "48x2048,8x16384"; "auto" = as many as there is memory for.
          context: tokens a request may have in all, or a text that is embedded; None = by the
            model and the platform; "auto" = as many as there is memory for.
          chat_template: a file with a jinja2 template to use instead of the model's own.
          cache_dir: where models and compiled programs are kept; None = the user's cache.
          progress: called with (label, done, total) while loading.
          engine: what else `EngineConfig` takes: ring, attention, context_policy, sinks,
            prefill_wait_ms, strict_compile.

        Raises:
          TpuinferError: one line that names the value, the rule and what works.
        """
        watch = progress or silent
        cache = None if cache_dir is None else Path(cache_dir).expanduser()
        plan = build.make_any_plan(
            model,
            mesh=mesh,
            rules=rules,
            dtype=dtype,
            weights=weights,
            engine=EngineConfig.parse(slots, context, **engine),
            cache_dir=cache,
            progress=watch,
        )
        if isinstance(plan, encoder.EncoderPlan):
            if chat_template is not None:
                raise ConfigError(f"chat_template is {chat_template}: an encoder has no chat")
            self._take(encoder.load_encoder(plan, cache_dir=cache, progress=watch))
            return
        loaded = build.load(
            plan,
            chat_template=chat_template,
            max_waiting=_UNBOUNDED,
            cache_dir=cache,
            progress=watch,
        )
        self._take(loaded)

    @classmethod
    def from_loaded(cls, loaded: build.Loaded | encoder.LoadedEncoder) -> "LLM":
        """An LLM over an engine, or an encoder, that is loaded already."""
        llm = cls.__new__(cls)
        llm._take(loaded)
        return llm

    def _take(self, loaded: build.Loaded | encoder.LoadedEncoder) -> None:
        self.plan = loaded.plan
        self.tokenizer = loaded.tokenizer
        self._does: Engine | Embedder
        self._runner: DeviceRunner | Embedder
        if isinstance(loaded, encoder.LoadedEncoder):
            self._does = self._runner = loaded.embedder
        else:
            self._does, self._runner = loaded.engine, loaded.runner
        self._ids = itertools.count()

    @property
    def _engine(self) -> Engine:
        if isinstance(self._does, Embedder):
            raise RequestError(
                f"this model is an encoder ({self.plan.config.family}): it makes vectors of texts, "
                "and no text; nearest: LLM.embed(texts)"
            )
        return self._does

    @property
    def _embedder(self) -> Embedder:
        if not isinstance(self._does, Embedder):
            raise RequestError(
                "this model makes text, and no vectors; nearest: LLM.generate, or an encoder such "
                "as LLM('all-minilm-l6-v2')"
            )
        return self._does

    def embed(
        self,
        texts: Prompt | Sequence[Prompt],
        *,
        truncate: bool = False,
        prompt: str | None = None,
    ) -> Vector:
        """One vector for each text, as the encoder's own files say (pooling, normalisation).

        Args:
          texts: one or several, each a string or a list of token ids with the special ones.
          truncate: cut texts that are longer than `plan.context` tokens; otherwise they are errors.
          prompt: the name of the checkpoint's prompt to put before each string, such as "query";
            None = the one that the checkpoint names as its default, mostly none.

        Returns:
          [number of texts, D] float32, in the order of the texts.

        Raises:
          RequestError: a text cannot be encoded as asked, or the model is no encoder.
        """
        found = list(self.embed_stream(as_list(texts), truncate=truncate, prompt=prompt))
        return np.stack(found) if found else np.zeros((0, self.plan.config.embed), np.float32)

    def embed_stream(
        self, texts: Iterable[Prompt], *, truncate: bool = False, prompt: str | None = None
    ) -> Iterator[Vector]:
        """As `embed`, one vector [D] after the other; holds a few batches of texts, never all.

        Raises:
          RequestError: as `embed`, when the text in question is reached.
        """
        return self._embedder.stream(texts, truncate=truncate, prompt=prompt)

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        parse_special: bool = False,
        on_delta: Listener | None = None,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Iterator[Prompt],
        sampling_params: SamplingParams | Iterable[SamplingParams] | None = None,
        *,
        parse_special: bool = False,
        on_delta: Listener | None = None,
    ) -> Answers: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | Iterator[Prompt],
        sampling_params: Any = None,
        *,
        parse_special: bool = False,
        on_delta: Listener | None = None,
    ) -> list[RequestOutput] | Answers:
        """Complete prompts, batched; answers come back in the order of the prompts.

        Args:
          prompts: one or several, each a string or a list of token ids; or an iterator, such as a
            generator, of any number of them.
          sampling_params: one for all, or one per prompt; None = the defaults (16 tokens).
          parse_special: control-token text in a prompt, such as "<|im_start|>", becomes that token;
            otherwise it is text like any other. Token ids are taken as they are.
          on_delta: called with (index of the prompt, delta) as text arrives; `delta.choice` tells
            the answers to one prompt apart where `n` asks for several.

        Returns:
          one entry per prompt, with `n` outputs. An answer that cannot conform to its guide any
          more ends with finish_reason "error", and its `error` says why.

          Of an iterator, these entries one by one, as a generator: each as soon as those before it
          are out. It reads ahead, max(64, 8 x slots) answers, and holds no more; it computes while
          the next entry is asked for, and when it is closed what is running is aborted. Several may
          be open at once.

        Raises:
          RequestError: a prompt or a parameter cannot be served, and then nothing is generated; of
            an iterator, when the answers before it are out. Or the model is an encoder.
        """

        def ask(prompt: Prompt, how: SamplingParams) -> Asked:
            if isinstance(prompt, str):
                ids = self.tokenizer.encode(prompt, parse_special=parse_special)
                return self._ask(prompt, ids, how)
            if isinstance(prompt, int):
                raise RequestError(
                    f"a prompt is {prompt}: it must be a string or a list of token ids",
                    param="prompt",
                )
            return self._ask(None, list(prompt), how)

        if isinstance(prompts, Iterator):
            return self._stream(prompts, sampling_params, ask, on_delta)
        return self._all(as_list(prompts), sampling_params, ask, on_delta)

    @overload
    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        on_delta: Listener | None = None,
        **template_kwargs: Any,
    ) -> list[RequestOutput]: ...

    @overload
    def chat(
        self,
        messages: Iterator[Sequence[Message]],
        sampling_params: SamplingParams | Iterable[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        on_delta: Listener | None = None,
        **template_kwargs: Any,
    ) -> Answers: ...

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]] | Iterator[Sequence[Message]],
        sampling_params: Any = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        on_delta: Listener | None = None,
        **template_kwargs: Any,
    ) -> list[RequestOutput] | Answers:
        """Answer one conversation, or several; each is a list of {"role", "content"}.

        Args:
          messages: one conversation, several, or an iterator of conversations. Control-token text
            in them stays plain text.
          sampling_params: as for `generate`.
          tools: what the model may call, as JSON schemas in the form its chat template knows.
          on_delta: as for `generate`.
          template_kwargs: further variables of the chat template, such as enable_thinking.

        Returns:
          as `generate`: a list, or a generator where `messages` is an iterator.

        Raises:
          RequestError: as `generate`, or the chat template refuses the messages, knows no tools or
            no such variable.
        """
        given: dict[str, Any] = {**template_kwargs, **({"tools": tools} if tools else {})}

        def ask(conversation: Sequence[Message], how: SamplingParams) -> Asked:
            if not conversation or isinstance(conversation, Mapping):
                what = "a message" if conversation else "empty"
                raise RequestError(
                    f"a conversation is {what}: it must be a list of at least one message",
                    param="messages",
                )
            text = self.tokenizer.apply_chat_template(conversation, **given)
            return self._ask(text, self.tokenizer.encode_chat(conversation, **given), how)

        if isinstance(messages, Iterator):
            return self._stream(messages, sampling_params, ask, on_delta)
        if not messages:
            raise RequestError("messages is empty: give at least one", param="messages")
        several: Any = [messages] if isinstance(messages[0], Mapping) else messages
        return self._all(several, sampling_params, ask, on_delta)

    def _ask(self, text: str | None, ids: list[int], how: SamplingParams) -> Asked:
        name = f"generate-{next(self._ids)}"
        return Asked(text, split(name, ids, how, constraint=self._constraint(how)))

    def _all(
        self,
        prompts: Sequence[T],
        params: SamplingParams | Sequence[SamplingParams] | None,
        ask: Callable[[T, SamplingParams], Asked],
        on_delta: Listener | None,
    ) -> list[RequestOutput]:
        calls, each = self._calls, per_prompt(params, len(prompts))
        return answer_all(calls, list(map(ask, prompts, each)), on_delta)

    def _stream(
        self,
        prompts: Iterator[T],
        params: SamplingParams | Iterable[SamplingParams] | None,
        ask: Callable[[T, SamplingParams], Asked],
        on_delta: Listener | None,
    ) -> Answers:
        return stream(self._calls, itertools.starmap(ask, paired(prompts, params)), on_delta)

    @functools.cached_property
    def _calls(self) -> Calls:
        return Calls(self._engine)

    def _constraint(self, params: SamplingParams) -> Callable[[], Constraint] | None:
        """What makes the constraints of answers to one prompt; None where there is no guide."""
        if params.guide is None:
            return None
        check_text(params, self.tokenizer)
        return self._compiler.compile(params.guide).matcher

    @functools.cached_property
    def _compiler(self) -> "GrammarCompiler":
        from tpuinfer.grammar.compiler import GrammarCompiler

        return GrammarCompiler(self.tokenizer, self._engine.runner.vocab)

    def update_params(self, params: Mapping[str, Any]) -> None:
        """Go on with other weights, in place of those that were loaded; nothing is compiled.

        For loops that train and generate in one process: the arrays are used as they are, where
        they lie, and are not copied. Only of KV heads that the mesh keeps several times (`sharding`
        says so) copies are made.

        Args:
          params: name -> array, with the names, shapes, dtypes and shardings of those in use; what
            has KV heads that are repeated has the published shape, and may lie anywhere.

        Raises:
          RequestError: they differ in one of these, and then the old ones stay; requests are
            running, as in a call from `on_delta`, or an iterator of `generate` is open; or the
            model is an encoder.
        """
        engine = self._engine
        if self._calls.busy or engine.metrics.running or engine.metrics.waiting:
            raise RequestError(
                "requests are running: call update_params when generate has returned, and its "
                "iterators have ended or been closed",
                param="params",
            )
        if isinstance(self.plan, Plan) and self.plan.layout.repeats > 1:
            params = as_planned(params, self.plan)
        outcome: list[RequestError | None] = []
        engine.update(params, outcome.append)
        if outcome[0] is not None:
            raise outcome[0]

    def sharding(self) -> list[Placement]:
        """Where each weight and ring lies on the mesh, and why."""
        return self.plan.placements()

    def memory(self) -> list[Share]:
        """What takes the memory of one device: weights, rings, and what programs need beside."""
        return footprint.shares(self.plan, self.programs())

    def programs(self) -> list[Entry]:
        """Every compiled program: what it is fixed to, and what it cost."""
        return self._runner.manifest
