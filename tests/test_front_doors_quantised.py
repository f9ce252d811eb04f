"""`--weights` and `--ring` at the front doors and in Python: they answer, or say why not."""

import json
import signal
import urllib.request

import doors
import pytest
import tiny_model

from tpuinfer import LLM, SamplingParams
from tpuinfer.config import EngineConfig
from tpuinfer.engine import build
from tpuinfer.errors import MeshError

KEPT = ("--weights", "int8", "--ring", "int8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Flags that name the tiny model, with weights and rings in int8."""
    folder = tmp_path_factory.mktemp("quantised")
    checkpoint = tiny_model.write_checkpoint(folder / "tiny")
    cache = ("--cache-dir", str(folder / "cache"), "--context", "32", "--slots", "2")
    return ("--model", str(checkpoint), *cache, *KEPT)


@pytest.fixture(scope="module")
def text(model):
    """What the terminal's door says."""
    done = doors.run("generate", *model, "--prompt", "hello", "--max-tokens", "8", "--json")
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)["outputs"][0]["text"]


def test_a_server_says_the_same(model, text):
    with doors.started("serve", *model, "--port", "0") as server:
        url = server.line_with("ready after").partition(" s: ")[2].split()[0]
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 8, "temperature": 0}
        request = urllib.request.Request(
            f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            (choice,) = json.load(reply)["choices"]
        server.send(signal.SIGTERM)
        assert server.result().code == 0
    assert choice["text"] == text


def test_python_says_the_same(model, text):
    llm = LLM(model[1], weights="int8", ring="int8", context=32, slots=2, cache_dir=model[3])
    (answer,) = llm.generate(["hello"], SamplingParams(temperature=0, max_tokens=8))
    assert answer.outputs[0].text == text


def test_the_table_says_how_all_is_kept(model):
    done = doors.run("generate", *model, "--prompt", "a", "--max-tokens", "1", "--show-sharding")
    rows = {line.split()[0]: line for line in done.out.splitlines() if line.startswith("layers.")}
    assert "int8" in rows["layers.*.self_attn.q_proj.weight"]
    assert "int8" in rows["layers.*.ring.keys"]


WRONG = [
    (("--weights", "int9"), 2, ("int9", "nearest: int8")),
    (("--weights", "int8,attenion=none"), 2, ("attenion", "nearest: attention")),
    (("--ring", "int4"), 2, ("--ring=int4", "int8")),
    (("--mesh", "8", "--weights", "int4:32"), 3, ("mlp.down_proj", "nearest: int4:16")),
]


@pytest.mark.parametrize(("flags", "code", "parts"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_a_wrong_value_is_one_line(model, flags, code, parts):
    result = doors.run("generate", *model, *flags, "--prompt", "a")
    *before, line = result.err.splitlines()
    assert (result.code, result.out) == (code, ""), result.err
    assert line.startswith("tpuinfer: ")
    assert all(part in line for part in parts), line
    assert all(said.startswith("mesh data=") for said in before), before


def test_the_nearest_group_works(model):
    plan = build.make_plan(model[1], mesh="8", weights="int4:16", engine=EngineConfig.parse(2, 32))
    assert {str(scheme) for scheme in plan.schemes.values()} == {"int4:16", "int8"}
    with pytest.raises(MeshError, match="int4:32 cuts rows of"):
        build.make_plan(model[1], mesh="8", weights="int4:32", engine=EngineConfig.parse(2, 32))
