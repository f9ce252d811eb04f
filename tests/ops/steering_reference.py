"""What steering means, in numpy and one token at a time."""

import numpy as np

from tpuinfer.ops.steering import GENERATED, WORD


def mask_words(allowed):
    """[R, V] bool as words [R, ceil(V / 32)] int32, bit i % 32 of word i // 32."""
    words = np.zeros((allowed.shape[0], -(-allowed.shape[1] // WORD)), np.int64)
    for row, token in np.argwhere(allowed):
        words[row, token // WORD] |= 1 << token % WORD
    return words.astype(np.uint32).view(np.int32)


def may(words, token):
    """Whether a mask [W] int32 names a token."""
    return bool(int(words[token // WORD]) & 0xFFFFFFFF & 1 << token % WORD)


def steered(logits, by, row, asked):
    """One row's logits [V] after all that `asked` (field -> value) wants: [V] float64."""
    out = logits.astype(np.float64)
    biases = dict(zip(by.tables.biases.ids[row], by.tables.biases.values[row], strict=True))
    for token, count in enumerate(by.counts[row]):
        times = count // GENERATED
        if count:
            penalty = asked.get("repetition", 1.0)
            out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
        out[token] -= times * asked.get("frequency", 0.0)
        out[token] -= asked.get("presence", 0.0) if times else 0
        if asked.get("biased"):
            out[token] += biases.get(token, 0.0)
        if by.barred[row] > 0 and token in by.stops[row]:
            out[token] = -np.inf
        if asked.get("constrained") and not may(by.tables.masks[row], token):
            out[token] = -np.inf
    return out
