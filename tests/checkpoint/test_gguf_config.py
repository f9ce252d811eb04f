"""What a GGUF file's metadata says, and what of it is refused."""

from pathlib import Path
from typing import Any

import arch_gguf
import numpy as np
import pytest
import tiny_gguf
from arch_gguf import CASES
from tiny_gguf import D, F, H, K, L, N, V

from tpuinfer.checkpoint.gguf import GgufFile, open_gguf
from tpuinfer.checkpoint.gguf_config import describe
from tpuinfer.errors import CheckpointError
from tpuinfer.model_config import Rope
from tpuinfer.ops.rope import frequencies

BY_NAME = {case.name: case for case in CASES}


def llama(path: Path, **metadata: Any) -> GgufFile:
    return open_gguf(tiny_gguf.write_llama(path / "x.gguf", **metadata))


def of_case(path: Path, name: str, drop: tuple[str, ...] = (), **keys: Any) -> GgufFile:
    """A case's file without some keys, and with others; __ stands for a dot."""
    case = BY_NAME[name]
    found = arch_gguf.keys_of(case) | {k.replace("__", "."): v for k, v in keys.items()}
    for key in drop:
        del found[key]
    tensors = arch_gguf.tensors_of(case, arch_gguf.draw(case.hf))
    return open_gguf(arch_gguf.write(path / "x.gguf", case.architecture, found, tensors))


def test_config_is_hugging_faces(llama_file: Path) -> None:
    described = describe(open_gguf(llama_file), "bfloat16")
    assert described.architecture == "llama"
    assert described.tensors == set()
    assert described.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": L,
        "num_attention_heads": N,
        "num_key_value_heads": K,
        "head_dim": H,
        "max_position_embeddings": 256,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


def test_an_untied_head_shows(tmp_path: Path) -> None:
    file = open_gguf(tiny_gguf.write_llama(tmp_path / "u.gguf", tied=False))
    assert describe(file, "float32").config["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"general__architecture": "gemma4"},
            "'gemma4' is not supported; nearest: gemma[23]; supp",
        ),
        (
            {"general__architecture": ["llama"]},
            "architecture ..'llama'.. is not supported; near",
        ),
        ({"general__architecture": 7}, "architecture '7' is not supported; nearest: "),
        (
            {"llama__rope__scaling__type": "ntk"},
            "scaling.type = ntk: supported are none, linear, l",
        ),
        ({"llama__rope__scaling__type": "longrope"}, "needs tensors rope_factors_long.weight and"),
        ({"llama__rope__scaling__attn_factor": 1.5}, "attn_factor = 1.5: not known here"),
        ({"llama__attention__causal": False}, "llama.attention.causal = False: not known here"),
        ({"llama__rope__dimension_count": 8}, "heads are 16 wide, and all of them turns"),
        ({"llama__attention__value_length": 8}, "keys are 16 wide, and values must be too"),
        ({"llama__attention__head_count_kv": 3}, "no multiple of 3 KV heads"),
        ({"llama__attention__head_count": [4, 4]}, "head_count is .4, 4.; it must be an integer"),
        ({"llama__attention__key_length": 15}, "heads are 15 wide, which must be even"),
        ({"llama__block_count": 2**30}, "block_count = 1073741824: the file has 20 tensors"),
        ({"llama__block_count": 0}, "block_count is 0; it must be an integer"),
        ({"llama__rope__freq_base": -1.0}, "freq_base is -1.0; it must be a number above 0"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
        ({"llama__attention__clamp_kqv": 8.0}, "llama.attention.clamp_kqv = 8.0: not known here"),
        ({"llama__expert_count": 4}, "llama.expert_used_count is missing"),
        ({"llama__attention__scale": 0.5}, "llama.attention.scale = 0.5: not known here"),
        (
            {"tokenizer__ggml__tokens": ["x"] * (V + 1)},
            "97 tokens do not fit an embedding of 96 rows",
        ),
    ],
)
def test_what_would_change_the_numbers_is_refused(
    tmp_path: Path, metadata: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        describe(llama(tmp_path, **metadata), "float32")
    assert "\n" not in str(caught.value)


def test_all_problems_are_in_one_message(tmp_path: Path) -> None:
    metadata = {
        "llama__block_count": -1,
        "llama__context_length": 0.5,
        "llama__embedding_length": "wide",
        "llama__new_idea": 1.0,
    }
    with pytest.raises(CheckpointError) as caught:
        describe(llama(tmp_path, **metadata), "float32")
    for piece in ("block_count is -1", "context_length is 0.5", "length is wide", "new_idea = 1.0"):
        assert piece in str(caught.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama__rope__scaling__type": "none"},
        {"llama__rope__scaling__type": "none", "llama__rope__scaling__factor": 4.0},
        {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 0.0},
        {"llama__rope__scale_linear": 1.0},
        {"llama__attention__causal": True, "llama__attention__clamp_kqv": 0.0},
        {"llama__expert_count": 0, "llama__expert_used_count": 0},
        {"llama__attention__sliding_window": 0},
        {"llama__tensor_data_layout": "Meta AI original pth"},
        {"llama__vocab_size": V - 3},
    ],
)
def test_what_changes_nothing_is_taken(tmp_path: Path, metadata: dict[str, Any]) -> None:
    plain = describe(llama(tmp_path), "float32")
    assert describe(llama(tmp_path, **metadata), "float32") == plain


def test_a_table_of_divisors_is_rope_scaling_with_one_table(tmp_path: Path) -> None:
    described = describe(of_case(tmp_path, "llama 3.1"), "float32")
    assert described.tensors == {"rope_freqs.weight"}
    assert described.config["rope_scaling"] == {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.25, 2.0, 4.0, 8.0],
        "long_factor": [1.0, 1.25, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": 128,
        "attention_factor": 1.0,
    }


def test_the_table_of_llama_3_is_its_rule() -> None:
    """The loop of LlamaModel.generate_extra_tensors, against the rule of arXiv:2407.21783."""
    factor, low, high, original = 8.0, 1.0, 4.0, 8192
    rule = Rope(500_000.0, None, "llama3", factor, original, low=low, high=high)
    plain = 1 / 500_000.0 ** (np.arange(0, 128, 2) / 128)
    divisors = []
    for wavelength in 2 * np.pi / plain:
        share = (original / wavelength - low) / (high - low)
        between = 1 / ((1 - share) / factor + share)
        short, long = wavelength < original / high, wavelength > original / low
        divisors.append(np.float32(1.0 if short else factor if long else between))
    assert 1 < len({*divisors}) < 64
    table = Rope(
        500_000.0, None, "longrope", attention_factor=1.0, short=(*divisors,), long=(*divisors,)
    )
    wanted = frequencies(rule, 128, np.float64)
    np.testing.assert_allclose(frequencies(table, 128, np.float64), wanted, rtol=1e-6)


def test_divisors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tensors = tiny_gguf.llama_tensors() | {"rope_freqs.weight": (np.ones(7, np.float32), 0)}
    path = tmp_path / "x.gguf"
    path.write_bytes(tiny_gguf.gguf_bytes(tiny_gguf.llama_metadata(), tensors))
    with pytest.raises(CheckpointError, match=r"rope_freqs.weight has shape \[7\], not \[8\]"):
        describe(open_gguf(path), "float32")
    message = "scaling.factor = 4.0: beside tensor rope_freqs.weight is not supported"
    with pytest.raises(CheckpointError, match=message):
        describe(of_case(tmp_path, "llama 3.1", rope__scaling__factor=4.0), "float32")


def test_half_a_pair_of_tables_is_refused(tmp_path: Path) -> None:
    tensors = tiny_gguf.llama_tensors() | {"rope_factors_long.weight": (np.ones(8, np.float32), 0)}
    path = tmp_path / "x.gguf"
    path.write_bytes(tiny_gguf.gguf_bytes(tiny_gguf.llama_metadata(), tensors))
    with pytest.raises(CheckpointError, match="belong together, and one is missing"):
        describe(open_gguf(path), "float32")


@pytest.mark.parametrize(
    ("case", "drop", "keys", "entries"),
    [
        ("gemma2", ("attention.sliding_window",), {}, {"sliding_window": 4096}),
        ("gemma2", ("attn_logit_softcapping",), {}, {"attn_logit_softcapping": 50.0}),
        ("gemma2", ("final_logit_softcapping",), {}, {"final_logit_softcapping": 30.0}),
        ("gemma3", (), {"final_logit_softcapping": 9.0}, {"final_logit_softcapping": 9.0}),
        ("gemma3", (), {"rope__freq_base_swa": 5000.0}, {"rope_local_base_freq": 5000.0}),
        ("qwen3moe", ("expert_feed_forward_length",), {}, {"moe_intermediate_size": 20}),
        ("granite", ("embedding_scale",), {}, {"embedding_multiplier": 1.0}),
        ("granite", ("residual_scale",), {}, {"residual_multiplier": 1.0}),
        ("granite", (), {"attention__scale": 0.0}, {"attention_multiplier": 8**-0.5}),
        ("granite", (), {"rope__scaling__finetuned": True}, {"logits_scaling": 8.0}),
        ("phi3", (), {"attention__sliding_window": 0}, {"sliding_window": None}),
        ("phi3", ("rope.scaling.attn_factor",), {}, {"head_dim": 8}),
        ("llama", ("rope.freq_base",), {}, {"rope_theta": 10_000.0}),
    ],
)
def test_a_missing_key_means_what_llama_cpp_means_by_it(
    tmp_path: Path,
    case: str,
    drop: tuple[str, ...],
    keys: dict[str, Any],
    entries: dict[str, Any],
) -> None:
    config = describe(of_case(tmp_path, case, drop, **keys), "float32").config
    assert config | entries == config


@pytest.mark.parametrize(
    ("pattern", "full"),
    [(2, [1]), (3, [2]), (1, [0, 1, 2]), (0, []), ([True, False, False], [1, 2])],
)
def test_layers_with_a_window(tmp_path: Path, pattern: Any, full: list[int]) -> None:
    file = of_case(tmp_path, "gpt-oss", attention__sliding_window_pattern=pattern)
    kinds = describe(file, "float32").config["layer_types"]
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == full
    assert set(kinds) <= {"full_attention", "sliding_attention"}


def test_gemma_3_without_a_window_looks_at_everything(tmp_path: Path) -> None:
    file = of_case(tmp_path, "gemma3", ("attention.sliding_window",))
    assert describe(file, "float32").config["layer_types"] == ["full_attention"] * 7


@pytest.mark.parametrize(
    ("case", "keys", "message"),
    [
        ("gpt-oss", {"attention__sliding_window_pattern": [True]}, "a truth value for each of 3"),
        ("granite", {"rope__scaling__finetuned": False}, "without rotary positions"),
        (
            "olmo2",
            {"attention__sliding_window": 64},
            "olmo2.attention.sliding_window = 64: not kno",
        ),
        ("qwen3moe", {"expert_shared_count": 1}, "qwen3moe.expert_shared_count = 1: not known"),
        ("qwen3moe", {"expert_gating_func": 2}, "qwen3moe.expert_gating_func = 2: not known"),
        ("qwen3moe", {"expert_weights_norm": False}, "expert_weights_norm = False: not known"),
        ("qwen2 yarn", {"rope__scaling__yarn_log_multiplier": 0.5}, "multiplier = 0.5: not known"),
        ("phi3", {"rope__dimension_count": 10}, "it must be even, and at most 8"),
        ("phi3", {"rope__dimension_count": 5}, "it must be even, and at most 8"),
        ("qwen2", {"pooling_type": 1}, "qwen2.pooling_type = 1: not known here"),
    ],
)
def test_what_an_architecture_does_not_do_here_is_refused(
    tmp_path: Path, case: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        describe(of_case(tmp_path, case, **keys), "float32")


@pytest.mark.parametrize(
    ("case", "layers", "scalar"),
    [("gemma2", 46, 8), ("gemma2", 45, 10), ("gemma3", 62, 12), ("gemma3", 61, 10)],
)
def test_the_largest_gemmas_scale_queries_by_another_number(
    tmp_path: Path, case: str, layers: int, scalar: int
) -> None:
    """Told apart by their layers, as llama.cpp does: the file has no key for it."""
    found = BY_NAME[case]
    keys = arch_gguf.keys_of(found) | {"block_count": layers}
    tensors = {f"t{i}": np.zeros(1, np.float32) for i in range(layers)}
    tensors["token_embd.weight"] = np.zeros((71, 48), np.float32)
    path = arch_gguf.write(tmp_path / "x.gguf", found.architecture, keys, tensors)
    assert describe(open_gguf(path), "float32").config["query_pre_attn_scalar"] == scalar
