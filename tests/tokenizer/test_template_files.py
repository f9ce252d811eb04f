"""Which chat template a checkpoint's conversation is rendered with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tpuinfer.errors import RequestError, TokenizerError
from tpuinfer.tokenizer.load import load_tokenizer
from tpuinfer.tokenizer.tokenizer import Tokenizer

_HELLO = [{"role": "user", "content": "hi"}]
_TOOLS = [{"name": "cat"}]
_BOTH = [
    {"name": "default", "template": "plain"},
    {"name": "tool_use", "template": "{{ tools | tojson }}"},
]


def _texts(tokenizer: Tokenizer) -> tuple[str, str]:
    """Rendered without and with tools."""
    return tokenizer.apply_chat_template(_HELLO), tokenizer.apply_chat_template(
        _HELLO, tools=_TOOLS
    )


def _with_config(bpe_dir: Path, write: Callable[..., Path], **config: Any) -> Tokenizer:
    return load_tokenizer(write(tokenizer_config_json=config))


def test_tools_choose_the_template_made_for_them(bpe_dir: Path, write: Callable[..., Path]) -> None:
    tokenizer = _with_config(bpe_dir, write, chat_template=_BOTH)
    assert _texts(tokenizer) == ("plain", '[{"name": "cat"}]')
    assert tokenizer.apply_chat_template(_HELLO, tools=[]) == "plain"
    assert tokenizer.decode(tokenizer.encode_chat(_HELLO, tools=_TOOLS)) == '[{"name": "cat"}]'


def test_gguf_names_both_as_well(bpe_metadata: dict[str, Any], write: Callable[..., Path]) -> None:
    from tpuinfer.tokenizer.gguf_vocab import tokenizer_files

    bpe_metadata["tokenizer.chat_template"] = "plain"
    bpe_metadata["tokenizer.chat_template.tool_use"] = "{{ tools | tojson }}"
    files = {name.replace(".", "_"): data for name, data in tokenizer_files(bpe_metadata).items()}
    assert _texts(load_tokenizer(write(**files))) == ("plain", '[{"name": "cat"}]')


def test_files_of_their_own_win(bpe_dir: Path, write: Callable[..., Path]) -> None:
    (bpe_dir / "chat_template.jinja").write_text("file")
    more = bpe_dir / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("file for {{ tools[0].name }}")
    tokenizer = _with_config(bpe_dir, write, chat_template=_BOTH)
    assert _texts(tokenizer) == ("file", "file for cat")


def test_the_processor_s_file_comes_last(bpe_dir: Path, write: Callable[..., Path]) -> None:
    write(chat_template_json={"chat_template": "processor"})
    assert _with_config(bpe_dir, write).apply_chat_template(_HELLO) == "processor"
    own = _with_config(bpe_dir, write, chat_template="own")
    assert own.apply_chat_template(_HELLO) == "own"


def test_a_file_given_wins_over_all(bpe_dir: Path, tmp_path: Path) -> None:
    (bpe_dir / "chat_template.jinja").write_text("file")
    path = tmp_path / "mine.jinja"
    path.write_text("mine {{ eos_token }} {{ tools }}")
    tokenizer = load_tokenizer(bpe_dir, chat_template=path)
    assert tokenizer.apply_chat_template(_HELLO) == "mine <|im_end|> None"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (None, r"mine\.jinja: cannot be read \(No such file or directory\)"),
        (b"\xff", r"mine\.jinja: cannot be read"),
        (b"x\n{% if %}", r"chat-template .*mine\.jinja: line 2"),
    ],
)
def test_a_bad_file_is_named_in_one_line(
    bpe_dir: Path, tmp_path: Path, data: bytes | None, match: str
) -> None:
    path = tmp_path / "mine.jinja"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(TokenizerError, match=match) as caught:
        load_tokenizer(bpe_dir, chat_template=path)
    assert "\n" not in str(caught.value)


def test_what_a_template_would_drop_is_refused(bpe_dir: Path) -> None:
    (bpe_dir / "chat_template.jinja").write_text("{{ enable_thinking }}")
    tokenizer = load_tokenizer(bpe_dir)
    with pytest.raises(RequestError, match="takes no tools; it reads enable_thinking") as caught:
        tokenizer.encode_chat(_HELLO, tools=_TOOLS)
    assert caught.value.param == "tools"
    with pytest.raises(RequestError, match="takes no enable_thinkin; nearest: enable_thinking"):
        tokenizer.encode_chat(_HELLO, enable_thinkin=True)
    assert tokenizer.apply_chat_template(_HELLO, enable_thinking=False) == "False"
