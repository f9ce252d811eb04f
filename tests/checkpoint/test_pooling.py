"""How an encoder pools, from the small files beside its weights."""

import json
import logging

import pytest

from tpuinfer.checkpoint import layout
from tpuinfer.checkpoint.pooling import read_pooling
from tpuinfer.errors import CheckpointError
from tpuinfer.model_config import Pooling

STEPS = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}


def steps(*kinds, **folders):
    paths = {**STEPS, **folders}
    return [
        {"type": f"sentence_transformers.models.{kind}", "path": paths.get(kind, "3_X")}
        for kind in kinds
    ]


def write(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(json.dumps(content), "utf-8")
    return path


MEAN = {"1_Pooling/config.json": {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": 1}}
WHOLE = {"modules.json": steps(*STEPS), **MEAN, "sentence_bert_config.json": {}}


def test_a_directory_as_it_is_published(tmp_path):
    write(
        tmp_path,
        {
            **WHOLE,
            "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": True},
            "config_sentence_transformers.json": {
                "prompts": {"query": "query: ", "passage": "passage: "},
                "default_prompt_name": "passage",
            },
            "config.json": {},
        },
    )
    assert read_pooling(tmp_path) == Pooling(
        mode="mean",
        normalise=True,
        max_tokens=256,
        lowercase=True,
        prompts={"query": "query: ", "passage": "passage: "},
        default_prompt="passage",
    )


@pytest.mark.parametrize(
    ("stated", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted_mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_each_pooling_by_the_names_it_goes_by(tmp_path, stated, mode):
    modules = steps("Transformer", "Pooling")
    write(tmp_path, {"modules.json": modules, "1_Pooling/config.json": stated})
    assert read_pooling(tmp_path) == Pooling(mode=mode, normalise=False)


def test_without_modules_it_is_the_mean_and_one_line_says_so(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "tpuinfer"):
        assert read_pooling(tmp_path) == Pooling("mean", normalise=False)
    (record,) = caplog.records
    assert "no modules.json; pooling by mean, without normalisation" in record.getMessage()


def test_the_encoders_file_may_bear_another_models_name(tmp_path):
    files = {**WHOLE, "sentence_xlm-roberta_config.json": {"max_seq_length": 128}}
    del files["sentence_bert_config.json"]
    assert read_pooling(write(tmp_path, files)).max_tokens == 128


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"modules.json": steps("Transformer", "Pooling", "Dense", "Normalize")},
            "the steps are Transformer, Pooling, Dense, Normalize; done here",
        ),
        ({"modules.json": []}, "the steps are none"),
        ({"modules.json": steps("Transformer", "Normalize", "Pooling")}, "done here are"),
        ({"modules.json": {"a": 1}}, "must be a list of objects"),
        ({"modules.json": [{"type": "x.Transformer"}]}, "must be a list of objects"),
        ({"modules.json": steps(*STEPS, Pooling="../secrets")}, "path is '../secrets'"),
        ({"modules.json": steps(*STEPS, Transformer="0_T")}, "lies in the folder '0_T'"),
        (
            {"1_Pooling/config.json": {"pooling_mode_max_tokens": True}},
            "the pooling is max_tokens; done here is one of cls, mean",
        ),
        (
            {
                "1_Pooling/config.json": {
                    "pooling_mode_cls_token": True,
                    "pooling_mode_max_tokens": True,
                }
            },
            "cls_token with max_tokens",
        ),
        ({"1_Pooling/config.json": {}}, "the pooling is not stated"),
        ({"1_Pooling/config.json": [1]}, "holds a JSON list, not an object"),
        ({"sentence_bert_config.json": {"max_seq_length": 0}}, "max_seq_length is 0"),
        (
            {"config_sentence_transformers.json": {"default_prompt_name": "query"}},
            "default_prompt_name is 'query', which prompts lack; they are none",
        ),
        (
            {"config_sentence_transformers.json": {"prompts": ["q"]}},
            r"config_sentence_transformers\.json: prompts is \['q'\]: it must be an object",
        ),
        (
            {"config_sentence_transformers.json": {"prompts": {"query": 3}}},
            r"prompts is \{'query': 3\}: it must be an object of name: text",
        ),
        (
            {
                "1_Pooling/config.json": {
                    "pooling_mode_mean_tokens": True,
                    "include_prompt": False,
                },
                "config_sentence_transformers.json": {"prompts": {"query": "q: "}},
            },
            "include_prompt is false",
        ),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(tmp_path, files, message):
    write(tmp_path, {**WHOLE, **files})
    with pytest.raises(CheckpointError, match=message) as caught:
        read_pooling(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path, WHOLE)
    (tmp_path / "modules.json").write_bytes(b"\xff[")
    with pytest.raises(CheckpointError, match=r"modules\.json: is not UTF-8"):
        read_pooling(tmp_path)


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
def test_a_file_without_end_is_refused(tmp_path, monkeypatch, name):
    write(tmp_path, WHOLE)
    monkeypatch.setattr(layout, "_MAX_TEXT", 1000)
    (tmp_path / name).write_text(" " * 1001)
    with pytest.raises(CheckpointError, match=r"json: is larger than 1000 bytes"):
        read_pooling(tmp_path)
