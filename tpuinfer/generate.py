"""`python -m tpuinfer.generate`: one prompt, a file of prompts, or a chat in the terminal."""

import dataclasses
import json
import sys

from absl import flags

from tpuinfer import flags as shared
from tpuinfer import sampling_flags
from tpuinfer.engine.llm import LLM
from tpuinfer.engine.request import Delta, RequestOutput, SamplingParams
from tpuinfer.errors import ConfigError, RequestError

flags.adopt_module_key_flags(shared)
flags.adopt_module_key_flags(sampling_flags)

_PROMPT = flags.DEFINE_string("prompt", None, "Text to continue; with --chat, a user's message.")
_PROMPTS = flags.DEFINE_string("prompts", None, "File with one prompt per line; - for stdin.")
_CHAT = flags.DEFINE_bool("chat", False, "Render prompts with the model's chat template.")
_SEED = flags.DEFINE_integer("seed", None, "Same seed, same tokens; default: a fresh one.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object per prompt.")


def main() -> None:
    """Answer --prompt or every line of --prompts; with neither, talk."""
    chosen = shared.settings()
    params = SamplingParams(
        **sampling_flags.values(), guide=sampling_flags.guide(), seed=_SEED.value
    )
    prompts = _read_prompts()
    loaded = shared.load(chosen, chosen.engine())
    llm = LLM.from_loaded(loaded)
    if prompts is None:
        _talk(llm, params)
    elif len(prompts) == 1 and not _JSON.value:
        _answer(llm, prompts, params, stream=True)
        print()
    else:
        for output in _answer(llm, prompts, params, stream=False):
            print(_as_json(output) if _JSON.value else output.outputs[0].text, flush=True)


def _read_prompts() -> list[str] | None:
    if _PROMPT.value is not None and _PROMPTS.value is not None:
        raise ConfigError("both --prompt and --prompts are given: give one")
    if _PROMPT.value is not None:
        return [_PROMPT.value]
    if _PROMPTS.value is None:
        return None
    text = _prompt_file(_PROMPTS.value)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"prompts is {_PROMPTS.value!r}: it has no line with text")
    return lines


def _prompt_file(path: str) -> str:
    return sys.stdin.read() if path == "-" else sampling_flags.read_text("prompts", path)


def _answer(
    llm: LLM, prompts: list[str], params: SamplingParams, stream: bool
) -> list[RequestOutput]:
    def show(_: int, delta: Delta) -> None:
        print(delta.text, end="", flush=True)

    on_delta = show if stream else None
    if not _CHAT.value:
        return llm.generate(prompts, params, on_delta=on_delta)
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return llm.chat(conversations, params, on_delta=on_delta)


def _talk(llm: LLM, params: SamplingParams) -> None:
    """A conversation that remembers its turns; ends with /exit or the end of input.

    What does not fit the context any more is said, and the turn can be tried again after /new.
    """
    prompting = sys.stdin.isatty()
    if prompting:
        print("Chat with the model. /new forgets the conversation, /exit leaves.")
    messages: list[dict[str, str]] = []
    while True:
        try:
            text = input("> " if prompting else "").strip()
        except EOFError:
            return
        if text == "/exit":
            return
        if text == "/new":
            messages = []
            continue
        if not text:
            continue
        turn = [*messages, {"role": "user", "content": text}]
        try:
            answer = llm.chat(
                turn, params, on_delta=lambda _, delta: print(delta.text, end="", flush=True)
            )
        except RequestError as error:
            print(f"tpuinfer: {error}; /new starts afresh", file=sys.stderr)
            continue
        print(flush=True)
        messages = [*turn, {"role": "assistant", "content": answer[0].outputs[0].text}]


def _as_json(output: RequestOutput) -> str:
    return json.dumps(dataclasses.asdict(output), ensure_ascii=False)


if __name__ == "__main__":
    shared.run(main)
