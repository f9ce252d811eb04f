"""Front doors from the outside: what they print, on which stream, and how they exit."""

import json
import shutil
import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import doors
import pytest
import tiny_model

from tpuinfer.checkpoint import catalogue
from tpuinfer.models import registry

ENGINE = ("--context", "32", "--slots", "2", "--max-tokens", "8")
"""One prefill program and one decode program: a second to compile."""

_DEQUANTISED = "tiny.gguf: quantised weights (1 as int8:32) are dequantised"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doors")


@pytest.fixture(scope="module")
def gguf(folder: Path) -> Path:
    return tiny_model.write_gguf(folder / "tiny.gguf")


@pytest.fixture(scope="module")
def checkpoint(folder: Path, gguf: Path) -> Path:
    """What the convert door made of the GGUF file."""
    made = doors.run("convert", "--model", str(gguf), "--output", str(folder / "tiny"), "--verify")
    assert (made.code, made.out) == (0, "")
    assert made.err == (
        f"{_DEQUANTISED}; --weights published keeps them\n{folder / 'tiny'}: {gguf}, bfloat16\n"
    )
    return folder / "tiny"


@pytest.fixture
def own_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "own"))


@pytest.fixture(scope="module")
def model(folder: Path, checkpoint: Path) -> tuple[str, ...]:
    """Flags that name the tiny model and a cache of compiled programs that the tests share."""
    return ("--model", str(checkpoint), "--cache-dir", str(folder / "cache"), *ENGINE)


@pytest.fixture(scope="module")
def answers(model: tuple[str, ...], folder: Path) -> list[dict[str, object]]:
    """What the model says to two prompts, as --json prints it."""
    (folder / "prompts.txt").write_text("hello\n\n  \nTo be, or\n", "utf-8")
    done = doors.run("generate", *model, "--prompts", str(folder / "prompts.txt"), "--json")
    assert (done.code, done.err) == (0, "")
    return [json.loads(line) for line in done.out.splitlines()]


def refused(result: doors.Result, code: int, *parts: str) -> None:
    """Nothing on stdout; on stderr one line that is the error, and only progress before it."""
    *before, line = result.err.splitlines()
    assert (result.code, result.out) == (code, ""), result.err
    assert line.startswith("tpuinfer: ")
    assert all(part in line for part in parts), line
    assert all(
        text.startswith(("listening on http://", "mesh data=", _DEQUANTISED)) for text in before
    )


WRONG_FLAGS = [
    (("--promt", "x"), 2, ("'promt'", "Did you mean: prompt")),
    (("hello",), 2, ("'hello' is not a flag",)),
    (("--context", "long"), 2, ("context is 'long': a number of tokens, or auto",)),
    (("--dtype", "float16"), 2, ("--dtype=float16", "auto|bfloat16|float32")),
    (("--mesh", "2by4"), 3, ("mesh '2by4'", "2x4")),
    (("--mesh", "0x4"), 3, ("data is 0", "works is 1")),
    (("--slots", "many"), 2, ("slots is 'many'", "8x2048")),
    (("--slots", "0"), 2, ("slots is 0", "at least 1")),
    (("--slots", "8x64", "--context", "32"), 2, ("give one length",)),
    (("--context", "1"), 2, ("context is 1", "at least 2")),
    (("--temperature", "-1"), 6, ("temperature is -1.0", "nearest: 0.0")),
    (("--top-p", "0"), 6, ("top_p is 0",)),
    (("--prompt", "a", "--prompts", "b"), 2, ("give one",)),
    (("--prompts", "none.txt"), 2, ("'none.txt': cannot be read (No such file",)),
    (("--config", "none.toml"), 2, ("none.toml: cannot be read",)),
    (("--rules", "none.toml"), 2, ("none.toml: cannot be read",)),
    (("--model", "none/such"), 4, ("none/such: no such file or directory",)),
    (("--model", "smolm2-135m"), 4, ("did you mean 'smollm2-135m-instruct'?",)),
]
NAMES = [" ".join(flags) for flags, _, _ in WRONG_FLAGS]


@pytest.mark.parametrize(("flags", "code", "parts"), WRONG_FLAGS, ids=NAMES)
def test_a_wrong_flag_is_one_line(flags, code, parts):
    refused(doors.run("generate", *flags), code, *parts)


@pytest.mark.parametrize("flag", ["tool-call-parser", "reasoning-parser"])
def test_a_parser_that_there_is_not_is_said_before_anything_loads(flag):
    result = doors.run("serve", "--port", "0", "--model", "none/such", f"--{flag}", "nonsense")
    refused(result, 2, f"--{flag} is nonsense")
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("door", ["serve", "generate", "batch", "convert"])
def test_every_door_refuses_an_unknown_flag(door):
    refused(doors.run(door, "--modle=x", "--output=x"), 2, "Unknown command line flag")


@pytest.mark.parametrize(
    ("door", "names"),
    [
        ("serve", {"--model", "--mesh", "--slots", "--port"}),
        ("generate", {"--model", "--mesh", "--slots", "--prompt"}),
        ("batch", {"--model", "--mesh", "--slots", "--input", "--output", "--json-schema"}),
        ("convert", {"--model", "--dtype", "--output"}),
    ],
)
def test_help_lists_the_shared_flags_too(door, names):
    out = doors.run(door, "--help").out
    assert names <= {line.split(":")[0].strip() for line in out.splitlines()}
    assert ("--mesh" in out) == ("--mesh" in names)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[engine]\nslotz = 3", ("'slotz'", "context, context_policy")),
        ("[modle]\n", ("[modle] is not known",)),
        ("[engine]\ncontext = 'long'", ("context is 'long'", "a number of tokens, or auto")),
        ("[engine]\nslots = 3\n[mesh]\nmesh = '4x2'", ("slots is 3", "data=4", "slots 4")),
    ],
)
def test_a_wrong_file_is_one_line(model, tmp_path, text, parts):
    (tmp_path / "s.toml").write_text(text, "utf-8")
    result = doors.run("generate", "--config", str(tmp_path / "s.toml"), *model[:2])
    refused(result, 3 if "mesh" in text else 2, *parts)


def test_flags_win_over_the_file(model, tmp_path):
    (tmp_path / "s.toml").write_text("[engine]\nslots = 8\n[mesh]\nmesh = '4x2'", "utf-8")
    given = ("--config", str(tmp_path / "s.toml"), *model[:2], "--slots", "6")
    refused(doors.run("generate", *given), 3, "slots is 6, which data=4 does not divide")
    refused(doors.run("generate", *given, "--mesh", "3by2"), 3, "mesh '3by2'")


def test_of_a_cpu_the_best_mesh_is_one_device(model):
    result = doors.run("generate", *model, "--mesh", "auto", "--prompt", "hello")
    assert (result.code, result.out != "") == (0, True)
    assert "mesh auto is 1: a CPU is one device; --mesh 8 simulates eight" in result.err


def test_a_context_beyond_the_model_names_the_longest(model):
    result = doors.run("generate", *model, "--context", str(tiny_model.CONTEXT + 1))
    refused(result, 2, "context is 257", f"nearest: {tiny_model.CONTEXT}")


def test_a_cut_gguf_file_is_one_line(gguf, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:100_000])
    given = ("--model", str(tmp_path / "cut.gguf"))
    for door, more in [("generate", "--cache-dir"), ("convert", "--output")]:
        result = doors.run(door, *given, more, str(tmp_path / "made"))
        refused(result, 4, "cut.gguf: damaged GGUF file", "is the download complete?")
        assert not (tmp_path / "made" / "tpuinfer.json").exists()


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda checkpoint: (checkpoint / name).write_text(text)


TABLE = "params/state/manifest.ocdbt"
DAMAGE = [
    ("table gone", lambda path: (path / TABLE).unlink(), "manifest.ocdbt is missing"),
    ("table cut", write(TABLE, "x"), "manifest.ocdbt has 1 bytes"),
    ("config cut", write("config.json", "{"), "config.json: not valid JSON"),
    ("manifest odd", write("tpuinfer.json", "[]"), "tpuinfer.json: holds a JSON list"),
    ("manifest gone", lambda path: (path / "tpuinfer.json").unlink(), "not a checkpoint directory"),
    ("tree gone", lambda path: shutil.rmtree(path / "params"), "not a checkpoint directory"),
]


@pytest.mark.parametrize(
    ("damage", "part"), [row[1:] for row in DAMAGE], ids=[d[0] for d in DAMAGE]
)
def test_a_damaged_checkpoint_is_one_line(model, own_checkpoint, damage, part):
    damage(own_checkpoint)
    result = doors.run("generate", *model, "--model", str(own_checkpoint), "--prompt", "x")
    refused(result, 4, str(own_checkpoint), part)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_fails_verification(gguf, own_checkpoint):
    verify = ("--model", str(gguf), "--output", str(own_checkpoint), "--verify")
    assert doors.run("convert", *verify).code == 0
    files = (path for path in (own_checkpoint / "params").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    flip(largest)
    name = largest.relative_to(own_checkpoint).as_posix()
    refused(doors.run("convert", *verify), 4, f"{own_checkpoint}: {name} is damaged")


def test_verify_sees_what_loading_does_not(model, own_checkpoint):
    flip(own_checkpoint / "generation_config.json")
    result = doors.run("generate", *model[2:], "--model", str(own_checkpoint), "--verify")
    refused(result, 4, f"{own_checkpoint}: generation_config.json is damaged")


def test_what_convert_cannot_do_is_one_line(gguf, checkpoint, tmp_path):
    taken = ("--output", str(tmp_path))
    (tmp_path / "mine.txt").write_text("dear")
    refused(doors.run("convert", "--model", str(gguf)), 2, "--output")
    refused(doors.run("convert", *taken), 2, "--model is not given", "--list")
    refused(doors.run("convert", "--model", str(gguf), *taken, "--to", "gguf"), 2, "orbax|hf")
    refused(doors.run("convert", "--model", str(gguf), *taken, "--to", "hf", "--verify"), 2, "--to")
    for model in (str(gguf), str(checkpoint)):
        for to in ("orbax", "hf"):
            result = doors.run("convert", "--model", model, *taken, "--to", to)
            refused(result, 4, "already exists")
    refused(doors.run("convert", "--model", "none/such", *taken), 4, "none/such: no such file")
    refused(doors.run("convert", "--model", str(gguf), "--output", "gs://b/x"), 4, "local")
    refused(doors.run("convert", "--model", str(gguf), *taken, "--mesh", "2x4"), 2, "--mesh")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]


def test_a_checkpoint_goes_out_and_comes_back(checkpoint, model, answers, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    made = doors.run("convert", "--model", str(checkpoint), "--output", str(out), "--to", "hf")
    assert (made.code, made.out) == (0, "")
    assert made.err == f"{out}: {checkpoint}, safetensors, auto\n"
    assert (out / "model.safetensors").is_file()
    made = doors.run("convert", "--model", str(out), "--output", str(back), "--verify")
    assert (made.code, made.err) == (0, f"{back}: {out}, auto\n")
    assert (back / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()
    said = doors.run("generate", *model, "--model", str(out), "--prompt", "hello", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["outputs"] == answers[0]["outputs"]


def test_a_checkpoint_is_quantised_and_serves(checkpoint, model, tmp_path):
    kept = tmp_path / "int8"
    convert = ("convert", "--model", str(checkpoint), "--output", str(kept))
    made = doors.run(*convert, "--weights", "int8", "--verify")
    assert (made.code, made.out) == (0, "")
    assert made.err == f"{kept}: {checkpoint}, bfloat16, 15 as int8\n"
    said = doors.run("generate", *model, "--model", str(kept), "--prompt", "hello", "--json")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out)["outputs"][0]["token_ids"]
    refused(doors.run(*convert, "--weights", "fp8"), 4, "already holds", "15 as int8")
    refused(doors.run(*convert, "--weights", "int8", "--to", "hf"), 2, "--to hf", "--to orbax")
    refused(doors.run(*convert, "--weights", "int7"), 2, "scheme 'int7'", "nearest: int")
    refused(doors.run(*convert, "--ring", "int8"), 2, "--ring")


def test_the_list_holds_every_family_and_model():
    result = doors.run("convert", "--list")
    assert (result.code, result.err) == (0, "")
    families, models = (part.splitlines() for part in result.out.split("\n\n"))
    assert len(families) == 1 + len(registry.families())
    for family, line in zip(registry.families().values(), families[1:], strict=True):
        assert line.startswith(family.title)
        assert all(name in line for name in (*family.model_types, *family.architectures))
    assert [line.split()[0] for line in models[1:]] == list(catalogue.entries())


def test_a_port_in_use_is_said_before_the_model_is_looked_at():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = doors.run("serve", "--port", str(port), "--model", "none/such")
    refused(result, 7, f"port is {port}: another process listens on it", "nearest")
    assert len(result.err.splitlines()) == 1


def test_a_server_that_cannot_load_stops(checkpoint):
    refused(doors.run("serve", "--port", "0", "--model", "none/such"), 4, "none/such: no such")
    refused(doors.run("serve", "--port", "70000"), 7, "port is 70000", "nearest: 65535")
    result = doors.run("serve", "--port", "0", "--model", str(checkpoint), "--context", "999")
    refused(result, 2, "nearest: 256")


def test_json_holds_each_prompt_and_its_answer(answers):
    assert [answer["prompt"] for answer in answers] == ["hello", "To be, or"]
    for answer in answers:
        (output,) = answer["outputs"]
        assert 1 <= len(output["token_ids"]) <= 8
        assert output["finish_reason"] in ("stop", "length")
        assert answer["finished"] is True


def test_one_prompt_prints_its_text(model, answers):
    done = doors.run("generate", *model, "--prompt", "hello", "--show-sharding")
    assert (done.code, done.err) == (0, "")
    table, _, rest = done.out.partition("\ntotal ")
    assert table.startswith("array ")
    assert "layers.*.self_attn.q_proj.weight" in table
    assert "layers.*.ring.keys" in table
    assert rest.partition("\n")[2] == answers[0]["outputs"][0]["text"] + "\n"


def test_memory_is_shown_by_group(model):
    done = doors.run("generate", *model, "--prompt", "hello", "--show-memory")
    assert (done.code, done.err) == (0, "")
    table, _, _ = done.out.partition("\ntotal ")
    kinds = {line.split()[0] for line in table.splitlines()}
    assert kinds == {"memory", "weights", "rings", "state", "scratch"}


def test_a_prompt_beyond_the_context_is_one_line(model):
    result = doors.run("generate", *model, "--prompt", "x" * 32)
    refused(result, 6, "the prompt has 33 tokens", "holds 32", "at most 31")


def test_a_conversation_remembers_its_turns_until_the_context_is_full(model):
    """Each line is a turn; the second does not fit after the first, and does after /new."""
    long = "b" * 15
    one = doors.run("generate", *model, "--chat", "--prompts", "-", "--json", stdin=f"a\n{long}\n")
    assert one.code == 0, one.err
    first, second = (json.loads(line) for line in one.out.splitlines())
    assert (first["prompt"], second["prompt"]) == ("user:a\n", f"user:{long}\n")
    texts = [answer["outputs"][0]["text"] for answer in (first, second)]

    talk = doors.run("generate", *model, stdin=f"a\n\n{long}\n/new\n {long} \n/exit\nnever\n")
    assert (talk.code, talk.out) == (0, "".join(f"{text}\n" for text in texts))
    (line,) = talk.err.splitlines()
    assert "the context holds 32" in line
    assert line.endswith("/new starts afresh")


def test_a_server_answers_and_leaves_on_sigterm(model, answers):
    with doors.started("serve", *model[:-2], "--port", "0") as server:
        url = server.line_with("ready after").partition(" s: ")[2].split()[0]
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 8, "temperature": 0}
        request = urllib.request.Request(
            f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            (choice,) = json.load(reply)["choices"]
        server.send(signal.SIGTERM)
        done = server.result()
    assert choice["text"] == answers[0]["outputs"][0]["text"]
    assert (done.code, done.out) == (0, "")
    listening, ready, asked = done.err.splitlines()
    assert listening.startswith("listening on http://127.0.0.1:")
    assert ready.endswith("/v1 serves tiny")
    assert "/v1/completions" in asked
    assert "hello" not in asked


def test_a_server_may_be_stopped_while_it_loads(model, tmp_path):
    fresh = ("--model", model[1], "--cache-dir", str(tmp_path))
    with doors.started("serve", *fresh, "--port", "0") as server:
        url = server.line_with("listening on").split()[2].rstrip(",")
        with urllib.request.urlopen(f"{url}/health", timeout=60) as reply:
            assert reply.status == 200
        server.send(signal.SIGTERM)
        done = server.result()
    assert (done.code, done.out, len(done.err.splitlines())) == (0, "", 1)


def test_a_chat_template_that_cannot_be_read_is_one_line(model, tmp_path):
    given = ("--chat", "--prompt", "x", "--chat-template", str(tmp_path / "none.jinja"))
    refused(doors.run("generate", *model, *given), 5, "none.jinja: cannot be read")
