from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from tiny_gguf import D, F, H, K, L, N, V

from tpuinfer.checkpoint import names
from tpuinfer.checkpoint.gguf import GgufFile, open_gguf
from tpuinfer.errors import CheckpointError


def opened(path: Path, tensors: dict[str, tuple[np.ndarray, int]]) -> GgufFile:
    path.write_bytes(tiny_gguf.gguf_bytes(tiny_gguf.llama_metadata(), tensors))
    return open_gguf(path)


def rotate_pairs(rows: np.ndarray, angles: np.ndarray, first: np.ndarray, second: np.ndarray):
    """Turn each pair (row first[i], row second[i]) of [H, ...] by angles[i]."""
    out = rows.copy()
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    out[first] = rows[first] * cos - rows[second] * sin
    out[second] = rows[first] * sin + rows[second] * cos
    return out


def test_dims_come_from_the_metadata(llama_file: Path) -> None:
    dims = names.describe(open_gguf(llama_file))
    assert dims == names.Dims(
        V=V, D=D, F=F, L=L, N=N, K=K, H=H, context=256, theta=10_000.0, eps=1e-5, tied=True
    )


def test_every_parameter_has_our_name_and_shape(llama_file: Path) -> None:
    file = open_gguf(llama_file)
    shapes = {name: source.shape for name, source in names.plan(file, names.describe(file)).items()}
    assert len(shapes) == 2 + 9 * L
    assert shapes["embed_tokens.weight"] == (V, D)
    assert shapes["norm.weight"] == (D,)
    assert {
        name.removeprefix("layers.1."): shape
        for name, shape in shapes.items()
        if name.startswith("layers.1.")
    } == {
        "input_layernorm.weight": (D,),
        "self_attn.q_proj.weight": (N, H, D),
        "self_attn.k_proj.weight": (K, H, D),
        "self_attn.v_proj.weight": (K, H, D),
        "self_attn.o_proj.weight": (D, N, H),
        "post_attention_layernorm.weight": (D,),
        "mlp.gate_proj.weight": (F, D),
        "mlp.up_proj.weight": (F, D),
        "mlp.down_proj.weight": (D, F),
    }


def test_an_untied_head_is_a_parameter(tmp_path: Path) -> None:
    file = open_gguf(tiny_gguf.write_llama(tmp_path / "u.gguf", tied=False))
    dims = names.describe(file)
    assert not dims.tied
    source = names.plan(file, dims)["lm_head.weight"]
    head = names.read_param(file, source, np.float32)
    np.testing.assert_array_equal(head, tiny_gguf.llama_tensors(tied=False)["output.weight"][0])


def test_unpermuted_rows_rotate_as_halves_as_ggml_rotates_them_in_pairs(llama_file: Path) -> None:
    """Two rotary embeddings, two layouts, one set of query-key products."""
    file = open_gguf(llama_file)
    plan = names.plan(file, names.describe(file))
    raw = tiny_gguf.llama_tensors()["blk.0.attn_q.weight"][0].reshape(N, H, D)
    ours = names.read_param(file, plan["layers.0.self_attn.q_proj.weight"], np.float32)
    angles = 5 * 10_000.0 ** (-np.arange(H // 2) * 2 / H)
    even, half = np.arange(0, H, 2), np.arange(H // 2)
    key = np.random.default_rng(1).standard_normal((H, D)).astype(np.float32)
    key_ours = names.unpermute(key[None])[0]
    for head in range(N):
        in_pairs = rotate_pairs(raw[head], angles, even, even + 1)
        in_halves = rotate_pairs(ours[head], angles, half, half + H // 2)
        np.testing.assert_allclose(in_halves.T @ key_ours, in_pairs.T @ key, rtol=1e-5, atol=1e-5)


def test_unpermute_undoes_the_published_permutation() -> None:
    """Row (half j, i) of a head goes to row 2 i + j on the way to GGUF."""
    ours = np.arange(2 * 6 * 1).reshape(2, 6, 1)
    ggml = np.empty_like(ours)
    for head in range(2):
        for j in range(2):
            for i in range(3):
                ggml[head, 2 * i + j] = ours[head, 3 * j + i]
    np.testing.assert_array_equal(names.unpermute(ggml), ours)


def test_values_and_layouts_are_as_stored(llama_file: Path) -> None:
    file = open_gguf(llama_file)
    plan = names.plan(file, names.describe(file))
    raw = tiny_gguf.llama_tensors()
    o_proj = names.read_param(file, plan["layers.1.self_attn.o_proj.weight"], np.float32)
    np.testing.assert_array_equal(
        o_proj[3, 2], raw["blk.1.attn_output.weight"][0][3, 2 * H : 3 * H]
    )
    v_proj = names.read_param(file, plan["layers.1.self_attn.v_proj.weight"], np.float32)
    np.testing.assert_array_equal(v_proj[1], raw["blk.1.attn_v.weight"][0][H : 2 * H])


def test_config_is_hugging_faces(llama_file: Path) -> None:
    file = open_gguf(llama_file)
    config = names.hf_config(names.describe(file), file.metadata, "bfloat16")
    wanted = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    assert config | wanted == config


def test_all_differences_are_in_one_message(tmp_path: Path) -> None:
    tensors = tiny_gguf.llama_tensors()
    del tensors["blk.0.attn_v.weight"]
    tensors["blk.1.attn_q.bias"] = (np.zeros(64, np.float32), 0)
    tensors["output_norm.weight"] = (np.ones(32, np.float32), 0)
    file = opened(tmp_path / "bad.gguf", tensors)
    with pytest.raises(CheckpointError) as caught:
        names.plan(file, names.describe(file))
    message = str(caught.value)
    assert "blk.0.attn_v.weight is missing" in message
    assert "blk.1.attn_q.bias [64] is not part of a llama model" in message
    assert "output_norm.weight has shape [32], not [64]" in message


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general__architecture": "gemma3"}, "'gemma3' is not supported; supported: 'llama'"),
        ({"llama__rope__scaling__type": "linear"}, "rope scaling"),
        ({"llama__rope__scaling__factor": 8.0}, "rope scaling"),
        ({"llama__expert_count": 8}, "mixture of experts"),
        ({"llama__attention__sliding_window": 4096}, "sliding window"),
        ({"llama__attention__causal": False}, "not causal"),
        ({"llama__rope__dimension_count": 8}, "the heads are 16 wide"),
        ({"llama__attention__value_length": 8}, "the heads are 16 wide"),
        ({"llama__attention__head_count_kv": 3}, "no multiple of 3 KV heads"),
        ({"llama__attention__head_count": [4, 4]}, "head_count is .4, 4.; it must be an integer"),
        ({"llama__block_count": 2**30}, "block_count is 1073741824, with 20 tensors"),
        ({"llama__block_count": 0}, "block_count is 0; it must be an integer"),
        ({"llama__rope__freq_base": -1.0}, "freq_base is -1.0; it must be a number above 0"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
        ({"llama__attention__clamp_kqv": 8.0}, "llama.attention.clamp_kqv is not known"),
        ({"split__count": 3}, "one of 3 parts"),
        ({"tokenizer__ggml__tokens": ["x"] * (V + 1)}, "97 tokens and the embedding 96 rows"),
    ],
)
def test_what_would_change_the_numbers_is_refused(
    tmp_path: Path, metadata: dict[str, object], message: str
) -> None:
    file = open_gguf(tiny_gguf.write_llama(tmp_path / "x.gguf", **metadata))
    with pytest.raises(CheckpointError, match=message):
        names.describe(file)


def test_scaled_rope_frequencies_are_refused(tmp_path: Path) -> None:
    tensors = tiny_gguf.llama_tensors() | {"rope_freqs.weight": (np.ones(8, np.float32), 0)}
    with pytest.raises(CheckpointError, match="tensor rope_freqs"):
        names.describe(opened(tmp_path / "r.gguf", tensors))


def test_a_harmless_scaling_type_is_taken(tmp_path: Path) -> None:
    path = tiny_gguf.write_llama(tmp_path / "n.gguf", llama__rope__scaling__type="none")
    assert names.describe(open_gguf(path)).H == H
