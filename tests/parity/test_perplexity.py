"""Perplexity and divergence of two versions of a model, against torch's own functions."""

import pytest

pytest.importorskip("torch", reason="needs the parity extra (torch)")
pytest.importorskip("transformers", reason="needs the parity extra (transformers)")

import tiny_model
import torch
from torch_reference import Reference

from tpuinfer.accuracy.compare import Question, Variant, evaluate
from tpuinfer.accuracy.text import Text
from tpuinfer.checkpoint.convert import convert

pytestmark = pytest.mark.parity

TEXT = Text("a test", "It was a dark and stormy night; the rain fell in torrents. " * 3)


def test_two_versions(tmp_path):
    variants, references = [], []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        path = tiny_model.write_gguf(folder / "tiny.gguf", seed)
        variants.append(Variant(str(convert(path, folder / "tiny", "float32")), dtype="float32"))
        references.append(Reference.from_gguf(path))
    answer = evaluate(Question(TEXT, window=48, chunk=16), variants[0], variants[1:])
    losses, apart, agreed = [], [], []
    for ids in answer.windows.ids:
        first, second = (
            torch.log_softmax(torch.tensor(one.logits(ids[:1], ids[1:])), -1)[:-1]
            for one in references
        )
        targets = torch.tensor(ids[1:])
        losses.append(
            [
                torch.nn.functional.nll_loss(one, targets, reduction="none")
                for one in (first, second)
            ]
        )
        apart.append(
            torch.nn.functional.kl_div(second, first, log_target=True, reduction="none").sum(-1)
        )
        agreed.append(first.argmax(-1) == second.argmax(-1))
    of_first, of_second = (torch.cat([one[at] for one in losses]) for at in (0, 1))
    reference, other = answer.reference.scores, answer.rows[0].scores
    assert reference.tokens == len(of_first)
    assert reference.perplexity == pytest.approx(of_first.mean().exp().item(), rel=1e-4)
    assert other.perplexity == pytest.approx(of_second.mean().exp().item(), rel=1e-4)
    assert other.divergence == pytest.approx(torch.cat(apart).mean().item(), rel=1e-3)
    assert other.divergence_p99 == pytest.approx(torch.cat(apart).quantile(0.99).item(), rel=1e-3)
    assert other.top1 == torch.cat(agreed).double().mean().item()
