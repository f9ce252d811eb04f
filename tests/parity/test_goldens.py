import dataclasses
import json

import numpy as np
import pytest
from golden_file import NEW_TOKENS, PROBES, SMOLLM2, STEPS, TOP, load, probe_ids, save
from golden_prompts import PROMPTS

from tpuinfer.checkpoint.catalogue import find

VOCAB = 49152


@pytest.fixture(scope="module")
def stored():
    return load()


def test_the_goldens_are_of_the_prompts_in_this_folder(stored):
    assert [golden.name for golden in stored.goldens] == [prompt.name for prompt in PROMPTS]
    for golden, prompt in zip(stored.goldens, PROMPTS, strict=True):
        assert prompt.text in golden.text
        assert all(content in golden.text for _, content in prompt.messages)


def test_there_are_twenty_prompts_and_some_are_long(stored):
    lengths = [len(golden.prompt_ids) for golden in stored.goldens]
    assert len(lengths) == 20
    assert min(lengths) == 1
    assert sum(length > 512 for length in lengths) >= 2


def test_the_known_chat_prompt_has_37_tokens(stored):
    (chat,) = (golden for golden in stored.goldens if golden.name == "chat-short")
    assert len(chat.prompt_ids) == 37


def test_ids_are_in_the_vocabulary(stored):
    assert stored.probe_ids == probe_ids(VOCAB)
    assert len(set(stored.probe_ids)) == PROBES
    for golden in stored.goldens:
        ids = np.concatenate([golden.prompt_ids, golden.tokens, golden.rows.top_ids.ravel()])
        assert 0 <= ids.min() <= ids.max() < VOCAB


def test_rows_are_true_to_themselves(stored):
    for golden in stored.goldens:
        rows = golden.rows
        picked = [golden.tokens[step] for step in STEPS if step < NEW_TOKENS]
        assert rows.top_ids[:-1, 0].tolist() == picked
        assert np.all(np.diff(rows.top_values, axis=-1) <= 0)
        assert np.all(rows.margins >= 0)
        steps = list(STEPS)
        np.testing.assert_array_equal(
            rows.margins[steps], rows.top_values[:, 0] - rows.top_values[:, 1]
        )
        assert np.all(rows.scales[steps] >= np.abs(rows.top_values).max(axis=-1))
        assert np.all(rows.logsumexps[steps] > rows.top_values[:, 0])
        assert np.all(rows.probe_values <= rows.top_values[:, :1])
        assert rows.top_ids.shape == (len(STEPS), TOP)


def test_the_files_are_small():
    size = sum(SMOLLM2.with_name(SMOLLM2.name + end).stat().st_size for end in (".json", ".npz"))
    assert size < 300_000


def test_the_weights_are_the_catalogues(stored):
    assert stored.model_sha256 == find("smollm2-135m-instruct").member_sha256


def test_save_then_load_gives_the_same(stored, tmp_path):
    some = dataclasses.replace(stored, goldens=stored.goldens[:3])
    save(tmp_path / "a.b", some)
    again = load(tmp_path / "a.b")
    assert again.made_with == some.made_with
    for mine, theirs in zip(again.goldens, some.goldens, strict=True):
        assert (mine.name, mine.text) == (theirs.name, theirs.text)
        assert (mine.prompt_ids, mine.tokens) == (theirs.prompt_ids, theirs.tokens)
        for name, values in vars(theirs.rows).items():
            np.testing.assert_array_equal(getattr(mine.rows, name), values)
            assert getattr(mine.rows, name).dtype == values.dtype


def test_halves_that_do_not_belong_together_are_refused(stored, tmp_path):
    save(tmp_path / "x", dataclasses.replace(stored, goldens=stored.goldens[:2]))
    head = json.loads((tmp_path / "x.json").read_text())
    head["prompts"].pop()
    (tmp_path / "x.json").write_text(json.dumps(head))
    with pytest.raises(ValueError, match="1 prompts need"):
        load(tmp_path / "x")


def test_a_prompt_with_missing_tokens_is_refused(stored, tmp_path):
    save(tmp_path / "x", dataclasses.replace(stored, goldens=stored.goldens[:1]))
    head = json.loads((tmp_path / "x.json").read_text())
    head["prompts"][0]["tokens"].pop()
    (tmp_path / "x.json").write_text(json.dumps(head))
    with pytest.raises(ValueError, match="63 tokens, not 64"):
        load(tmp_path / "x")
