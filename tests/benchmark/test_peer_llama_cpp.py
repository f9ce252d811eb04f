"""llama.cpp as a peer: in which order it works, and that its tokens are the reference's."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_model
from checkpoint.tiny_gguf import gguf_bytes, llama_tensors
from parity.golden_file import load as load_goldens

from tpuinfer.benchmark import peer_llama_cpp
from tpuinfer.benchmark.peer_llama_cpp import Peer
from tpuinfer.benchmark.workload import Item
from tpuinfer.checkpoint.catalogue import find
from tpuinfer.checkpoint.convert import convert
from tpuinfer.checkpoint.fetch import fetch
from tpuinfer.checkpoint.load import default_cache_dir, load_params, read_config
from tpuinfer.errors import ConfigError
from tpuinfer.model_config import ModelConfig
from tpuinfer.models import registry
from tpuinfer.models.blueprint import abstract_params
from tpuinfer.sharding.layout import resolve
from tpuinfer.sharding.mesh import build_mesh, parse_mesh
from tpuinfer.sharding.rules import ShardingRules
from tpuinfer.testing import reference

PROMPTS = [(3, 11, 4, 11, 5), (9, 12), (6, 5, 3, 5, 8, 9, 7, 9)]

SMOLLM2 = ModelConfig(
    family="llama",
    vocab=49152,
    embed=576,
    mlp=1536,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    context=8192,
)


class Counting(Peer):
    """Batches of at most 6 tokens; the next token is the sum of a sequence's so far."""

    def __init__(self) -> None:
        self._width = 6
        self.batches: list[list[tuple[int, int, int]]] = []
        self.freed: list[int] = []
        self._sums: dict[int, int] = {}
        self._context = None
        self._llama = SimpleNamespace(
            llama_get_memory=lambda context: "memory",
            llama_memory_clear=lambda memory, data: self._sums.clear(),
            llama_memory_seq_rm=self._forget,
        )

    def _forget(self, memory, sequence, start, end):
        assert (memory, start, end) == ("memory", -1, -1)
        del self._sums[sequence]
        self.freed.append(sequence)

    def _step(self, tokens, positions, sequences, wanted):
        self.batches.append(list(zip(sequences, positions, tokens, strict=True)))
        assert 0 < len(tokens) <= self._width
        made = []
        for sequence, token, asked in zip(sequences, tokens, wanted, strict=True):
            self._sums[sequence] = self._sums.get(sequence, 0) + token
            if asked:
                made.append(self._sums[sequence])
        return np.array(made)


def test_prompts_share_batches_with_those_that_decode():
    peer = Counting()
    items = [Item((1, 2), 3), Item((10, 20, 30, 40, 50, 60), 2), Item((5,), 1)]
    answers = peer.answers(items, 2)
    assert answers == [[3, 6, 12], [210, 420], [5]]
    first, second, *rest = peer.batches
    # Sequence 1 has the short prompt whole, and 0 as much of the long one as there is room for.
    assert first == [(1, 0, 1), (1, 1, 2), (0, 0, 10), (0, 1, 20), (0, 2, 30), (0, 3, 40)]
    # What decodes comes first, then the rest of the prompt.
    assert second == [(1, 2, 3), (0, 4, 50), (0, 5, 60)]
    # Both go on; then the third takes the place that was left last, from position 0.
    assert rest == [[(1, 3, 6), (0, 6, 210)], [(0, 0, 5)]]
    assert peer.freed == [1, 0, 0]


def test_no_more_run_than_a_batch_has():
    peer = Counting()
    peer.answers([Item((1,), 2)] * 5, 2)
    assert max(len(one) for one in peer.batches) == 2
    assert len(peer.batches) == 6


def test_a_long_prompt_comes_in_parts_of_which_the_last_asks():
    peer = Counting()
    assert peer._prefill(3, range(1, 14)) == sum(range(1, 14))
    assert [len(one) for one in peer.batches] == [6, 6, 1]
    assert peer.batches[2] == [(3, 12, 13)]


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[None]:
    """The real one, with one thread: on a busy machine several wait for each other."""
    pytest.importorskip("llama_cpp", reason="needs the llamacpp extra (llama-cpp-python)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer_llama_cpp, "_cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def tiny(llama_cpp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A float32 GGUF file that llama.cpp takes (its vocabularies merge), and our weights of it."""
    folder = tmp_path_factory.mktemp("llama_cpp")
    path = folder / "tiny.gguf"
    keys = {**tiny_model.metadata(), "tokenizer.ggml.merges": ["! !"]}
    keys["tokenizer.ggml.tokens"][-1] = "!!"
    del keys["tokenizer.ggml.token_type"]  # which llama.cpp takes in int32 alone
    tensors = {name: (values, 0) for name, (values, _) in llama_tensors(tied=False).items()}
    path.write_bytes(gguf_bytes(keys, tensors))
    checkpoint = convert(path, folder / "tiny", "float32")
    config = registry.read_config(read_config(checkpoint))
    sizes = registry.axis_sizes(config, slots=1)
    layout = resolve(ShardingRules(), build_mesh(parse_mesh("1")), sizes)
    abstract = abstract_params(registry.build(config), layout, "float32")
    weights = {name: np.asarray(one) for name, one in load_params(checkpoint, abstract).items()}
    peer = Peer(path, "f32", config, slots=3, context=64)
    yield SimpleNamespace(path=path, config=config, weights=weights, peer=peer)
    del peer


def test_greedy_tokens_are_those_of_the_reference(tiny):
    """Names, rotary embedding and permutations of the same file, read by two programs."""
    for prompt in PROMPTS:
        answer = tiny.peer.greedy(prompt, 12)
        assert answer == reference.greedy(tiny.config, tiny.weights, prompt, 12)[0]


def test_sequences_that_share_batches_answer_like_each_alone(tiny):
    items = [Item(prompt, new) for prompt, new in zip(PROMPTS * 2, (4, 9, 1, 6, 2, 7), strict=True)]
    alone = [tiny.peer.greedy(item.prompt, item.new_tokens) for item in items]
    assert tiny.peer.answers(items, 3) == alone


def test_rounds_give_the_times_that_count(tiny):
    assert len(tiny.peer.prefill_round(PROMPTS[0], 2)) == 2
    assert len(tiny.peer.decode_round(PROMPTS[0], live=2, new_tokens=7)) == 4
    assert tiny.peer.serve([Item(prompt, 3) for prompt in PROMPTS], 2) > 0


def test_settings_say_what_it_takes(tiny):
    says = tiny.peer.settings
    assert says["weight_bytes"] == sum(one.nbytes for one in tiny.weights.values())
    config = tiny.config
    cells = says["kv_bytes"] / (2 * 2 * config.layers * config.kv_heads * config.head_dim)
    assert cells >= 3 * 64
    assert cells % 3 == 0
    assert (says["name"], says["weights"], says["cache"]) == ("llama.cpp", "f32", "f16")
    assert says["threads"] == 1


def test_a_sequence_that_is_full_is_an_error(tiny):
    room = int(tiny.peer._llama.llama_n_ctx(tiny.peer._context)) // 3
    with pytest.raises(ConfigError, match=r"llama\.cpp: decode gave 1"):
        tiny.peer.greedy(PROMPTS[0], room + 1)
    assert len(tiny.peer.greedy(PROMPTS[0], 3)) == 3


def test_a_file_that_it_does_not_take_is_refused_with_its_reason(tiny, tmp_path: Path):
    file = tmp_path / "bad.gguf"
    file.write_bytes(tiny.path.read_bytes()[:-64])
    with pytest.raises(ConfigError, match=r"cannot load it: .*not within the file bounds"):
        Peer(file, "f32", tiny.config, slots=1, context=64)


@pytest.mark.model
def test_the_published_file_gives_the_tokens_of_the_goldens(llama_cpp):
    """As ours does (parity/test_engine_parity.py): llama.cpp reads the Q4_1 file itself.

    It rounds activations to 8 bits too, so only prompts whose choices are clear are compared.
    """
    path = fetch(find("smollm2-135m-instruct"), default_cache_dir() / "downloads")
    peer = Peer(path, "q4_1", SMOLLM2, slots=1, context=256)
    goldens = {golden.name: golden for golden in load_goldens().goldens}
    for name in ("question", "list"):
        golden = goldens[name]
        assert peer.greedy(golden.prompt_ids, 8) == golden.tokens[:8], name
