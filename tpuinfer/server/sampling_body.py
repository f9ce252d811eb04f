"""The fields that chat and completions share: how tokens are picked, and how the answer is sent."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from tpuinfer.engine.request import (
    MAX_CHOICES,
    MAX_LOGIT_BIAS,
    MAX_STOP_CHARS,
    MAX_STOP_IDS,
    MAX_STOP_STRINGS,
    SamplingParams,
)
from tpuinfer.errors import RequestError
from tpuinfer.server.fields import (
    Int,
    Neutral,
    Range,
    StrictBody,
    Text,
    few,
    refusal,
    shown,
    worded,
)
from tpuinfer.server.guided import GuidedBody

_MOST = 2**31 - 1

MAX_LABELS = 16
"""Entries of `metadata`, as OpenAI has it."""

StopText = Annotated[Text, StringConstraints(min_length=1, max_length=MAX_STOP_CHARS)]
Count = Annotated[int, Range(1, _MOST)]


def _ids_as_keys(value: Any) -> Any:
    for key in value if isinstance(value, dict) else ():
        if not (key.isascii() and key.isdigit() and str(int(key[:10])) == key):
            message = f'logit_bias has the key {shown(key)}: it must be a token id, such as "42"'
            raise refusal(message, "", "invalid_value")
    return value


Biases = Annotated[
    dict[
        Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,9})$")], Annotated[float, Range(-100, 100)]
    ],
    Field(max_length=MAX_LOGIT_BIAS),
    BeforeValidator(_ids_as_keys),
    few(MAX_LOGIT_BIAS),
]

SAMPLING_NEUTRAL: Neutral = {
    "typical_p": (1,),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "prompt_cache_retention": ("in_memory",),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "include_stop_str_in_output": (False,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "logits_processors": ([],),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "structural_tag": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "priority": (0,),
    "request_id": (),
    "cache_salt": (),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
}
"""What OpenAI's and vLLM's clients may send to either endpoint, and this server does not do."""

_PASSED_ON = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
)


class StreamOptions(StrictBody):
    """What a stream carries beside the answer."""

    neutral: ClassVar[Neutral] = {"include_obfuscation": (False,)}

    include_usage: bool = Field(False, description="End with a chunk that counts the tokens.")
    continuous_usage_stats: bool = Field(False, description="Count the tokens in every chunk.")


class SamplingBody(GuidedBody):
    """The fields that chat and completions share; an absent one takes SamplingParams' default.

    `user`, `metadata` and the two keys beside them are labels for the caller: they ask nothing of
    the server.
    """

    model: Text
    max_tokens: Count | None = None
    n: Annotated[int, Range(1, MAX_CHOICES)] = Field(1, description="Answers to each prompt.")
    temperature: Annotated[float, Range(0, 2**16)] = Field(1.0, description="0: greedy.")
    top_p: Annotated[float, Range(0, 1, above=True)] = 1.0
    top_k: Annotated[int, Range(-1, _MOST)] = Field(0, description="0 and -1: all tokens.")
    min_p: Annotated[float, Range(0, 1)] = 0.0
    repetition_penalty: Annotated[float, Range(0, 2, above=True)] = 1.0
    presence_penalty: Annotated[float, Range(-2, 2)] = 0.0
    frequency_penalty: Annotated[float, Range(-2, 2)] = 0.0
    logit_bias: Biases = Field({}, description="Token id -> what is added to its logit.")
    seed: Annotated[int, Range(-(2**63), 2**64 - 1)] | None = None
    min_tokens: Annotated[int, Range(0, _MOST)] = 0
    stop: Annotated[
        StopText | Annotated[list[StopText], Field(max_length=MAX_STOP_STRINGS)] | None,
        worded(
            f"must be a string or a list of strings: at most {MAX_STOP_STRINGS}, of 1 to "
            f"{MAX_STOP_CHARS} characters each"
        ),
    ] = None
    stop_token_ids: Annotated[list[Int], Field(max_length=MAX_STOP_IDS)] = Field([])
    ignore_eos: bool = Field(False, description="Go on past the model's own end tokens.")
    skip_special_tokens: bool = Field(True, description="Leave control tokens out of the text.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: Annotated[dict[str, str], Field(max_length=MAX_LABELS), few(MAX_LABELS)] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            message = "stream_options is set but stream is not: set stream to true, or leave it out"
            raise refusal(message, "stream_options", "invalid_value")
        return self

    def params(
        self, limit: int | None, limit_name: str, logprobs: int | None, **more: Any
    ) -> SamplingParams:
        """How to sample; `limit` is max_tokens under the name that the client gave it.

        Raises RequestError where fields do not go together.
        """
        given = {name: getattr(self, name) for name in _PASSED_ON}
        given |= {"logit_bias": {int(key): bias for key, bias in self.logit_bias.items()}}
        try:
            return SamplingParams(max_tokens=limit, logprobs=logprobs, **given, **more)
        except RequestError as error:
            message = str(error).replace("max_tokens", limit_name, 1)
            param = limit_name if error.param == "max_tokens" else error.param
            raise RequestError(message, param=param) from None
