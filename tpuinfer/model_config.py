"""The numbers that define a model, as its config.json gives them. Plain data; knows no jax."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tpuinfer.errors import ConfigError

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class Rope:
    """One rotary embedding (arXiv:2104.09864) and how it is stretched beyond its training length.

    Attributes:
      theta: base of the frequencies.
      dim: how many dimensions of a head turn, the first ones; None = all.
      kind: how frequencies are scaled. factor: by how much.
      original: tokens of context before scaling; None = the model's context.
      low, high: llama3: wavelengths longer than original / low are scaled in full, shorter than
        original / high not at all. yarn (arXiv:2309.00071): turns over the original context at
        which scaling ends (beta_slow) and begins (beta_fast).
      truncate: yarn: the two ends of its ramp are rounded to whole dimensions.
      attention_factor: what cosines and sines are multiplied by; None = the kind's own rule.
      mscale, mscale_all_dim: yarn: the two numbers of its rule where a config states them.
      short, long: longrope (arXiv:2402.13753): a divisor for each frequency, for contexts up to
        the original one and beyond it.
    """

    theta: float = 10_000.0
    dim: int | None = None
    kind: RopeKind = "default"
    factor: float = 1.0
    original: int | None = None
    low: float = 1.0
    high: float = 4.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of a layer's MLP.

    Attributes:
      count: E. active: experts a token goes to. mlp: F of each.
      normalise: the weights of the active experts sum to one.
      dense_layers: layers that have a plain MLP instead.
    """

    count: int
    active: int
    mlp: int
    normalise: bool = True
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.count:
            raise ConfigError(
                f"model has {self.count} experts and {self.active} active ones: "
                f"active must be in [1, {self.count}]"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The numbers that define a decoder, in the letters used everywhere.

    Attributes:
      family: which blueprint builds it ("llama", "qwen3", ...).
      vocab: V. embed: D. mlp: F. layers: number of blocks. heads: N. kv_heads: K. head_dim: H.
      context: the longest sequence the model was trained for, tokens.
      rope: rotary positions. local_rope: those of layers with a window, where they differ.
      unrotated: layers without rotary positions.
      norm_eps: epsilon of the normalisations.
      tie_embeddings: the head is the embedding.
      eos_ids: tokens that end a text. bos_id: the token that opens one, if any.
      windows: for each layer, how many tokens it looks back at, itself included; 0 = all of them.
        Empty = every layer looks at everything.
      activation: of the MLP's gate.
      qkv_bias, o_bias, mlp_bias: which linear maps add a bias.
      query_scale: what scores are multiplied by; None = 1 / sqrt(H).
      score_cap, logit_cap: attention scores and logits are bent to stay within +-cap:
        cap * tanh(x / cap) (arXiv:2408.00118); None = not at all.
      embed_scale, residual_scale, logit_scale: what embeddings, the output of each half of a layer
        and logits are multiplied by.
      experts: the mixture of experts, if the layers have one.
    """

    family: str
    vocab: int
    embed: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rope: Rope = Rope()
    local_rope: Rope | None = None
    unrotated: tuple[int, ...] = ()
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    windows: tuple[int, ...] = ()
    activation: Activation = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    query_scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    experts: Experts | None = None

    def __post_init__(self) -> None:
        for name in ("vocab", "embed", "mlp", "layers", "heads", "kv_heads", "head_dim", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model {name} is {getattr(self, name)}: it must be at least 1")
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"model has {self.heads} query heads and {self.kv_heads} KV heads: "
                "the first must be a multiple of the second"
            )
        if self.head_dim % 2:
            raise ConfigError(f"model head_dim is {self.head_dim}: rotary positions need it even")
        if self.windows and (len(self.windows) != self.layers or min(self.windows) < 0):
            raise ConfigError(
                f"model windows has {len(self.windows)} entries, the least {min(self.windows)}: "
                f"it needs one per layer, {self.layers}, each 0 or more"
            )

    def settled(self, context: int) -> "ModelConfig":
        """The model that is run with this many tokens of context, whatever a text's own length.

        longrope has divisors for contexts up to the original one and others beyond it: a longer
        context takes the latter from the first token on, so that no key has to turn anew.
        """

        def one(rope: Rope) -> Rope:
            beyond = rope.original is not None and context > rope.original
            return replace(rope, short=rope.long) if beyond and rope.kind == "longrope" else rope

        return replace(
            self, rope=one(self.rope), local_rope=self.local_rope and one(self.local_rope)
        )

    def window(self, layer: int) -> int | None:
        """How many tokens a layer looks back at, itself included; None = all."""
        return (self.windows[layer] or None) if self.windows else None

    def rope_of(self, layer: int) -> Rope | None:
        """The rotary positions of a layer; None = it has none."""
        if layer in self.unrotated:
            return None
        return self.local_rope if self.local_rope and self.window(layer) else self.rope


PoolingMode = Literal["cls", "last", "mean", "mean_sqrt_len", "weighted_mean"]


@dataclass(frozen=True)
class Pooling:
    """How the vectors of a text's tokens become one vector, as an encoder's checkpoint states it.

    Attributes:
      mode: the first token's ("cls"), the last one's, or their mean; "mean_sqrt_len" divides their
        sum by the square root of their number, "weighted_mean" weighs the first once, the second
        twice, and so on (arXiv:2202.08904).
      normalise: scale the vector to length 1.
      max_tokens: tokens a text may have, special ones included; None = all that the encoder takes.
      lowercase: turn texts into lower case before anything else.
      prompts: texts by name that can be put before a text ("query" -> "query: ").
      default_prompt: the name of the one that is put there unless another is asked for.
    """

    mode: PoolingMode = "mean"
    normalise: bool = False
    max_tokens: int | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


@dataclass(frozen=True)
class EncoderConfig:
    """The numbers that define an encoder of the BERT kind (arXiv:1810.04805).

    Attributes:
      family: which blueprint builds it ("bert").
      vocab: V. embed: D. mlp: F. layers: number of blocks. heads: N.
      positions: rows of the table of positions. first_position: the row of a text's first token
        (RoBERTa leaves those up to its padding id unused).
      types: rows of the table of segments; a text alone is segment 0.
      norm_eps: epsilon of LayerNorm (arXiv:1607.06450).
      activation: of the MLP.
    """

    family: str
    vocab: int
    embed: int
    mlp: int
    layers: int
    heads: int
    positions: int
    first_position: int = 0
    types: int = 2
    norm_eps: float = 1e-12
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        for name in ("vocab", "embed", "mlp", "layers", "heads", "positions", "types"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model {name} is {getattr(self, name)}: it must be at least 1")
        if self.embed % self.heads:
            raise ConfigError(
                f"model embed is {self.embed} with {self.heads} heads: "
                "the first must be a multiple of the second"
            )
        if not 0 <= self.first_position < self.positions:
            raise ConfigError(
                f"model first_position is {self.first_position}: "
                f"it must be in [0, {self.positions - 1}]"
            )

    @property
    def head_dim(self) -> int:
        """H."""
        return self.embed // self.heads

    @property
    def context(self) -> int:
        """The longest text, in tokens."""
        return self.positions - self.first_position


AnyConfig = ModelConfig | EncoderConfig
