"""Real clients against a real server: the npm openai client, llm, lm-eval and guidellm.

    scripts/clients [NAME ...]

starts the default model in float32, gives each client an environment of its own, runs it, and
compares what lm-eval measured with transformers. One line a client; exit code 1 if one fails.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODEL = "smollm2-135m-instruct"
PINS = {
    "llm": ["llm==0.36"],
    "lm-eval": ["lm-eval[api]==0.4.13", "transformers==5.23.0"],
    "guidellm": ["torch==2.13.0", "guidellm==0.8.1"],
}
NPM_PIN = "openai@6.49.0"

QUESTIONS = [
    {
        "question": "The capital of France is",
        "choices": [" Paris.", " Rome.", " Oslo."],
        "answer": 0,
    },
    {
        "question": "Two plus two makes",
        "choices": [" four.", " nine.", " a very long walk home."],
        "answer": 0,
    },
    {
        "question": "Grass is usually",
        "choices": [" green.", " made of quartz and iron.", " loud."],
        "answer": 0,
    },
    {
        "question": "Water freezes at zero degrees",
        "choices": [" Celsius.", " Kelvin.", " North."],
        "answer": 0,
    },
]
TASK = """\
task: tpuinfer_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


class Place:
    """Where one run works: a folder for scratch, one for environments, and the server.

    Attributes:
      scratch: gone afterwards. environments: kept for the next run.
      url: of the server, without /v1. hugging_face: the model as transformers reads it.
    """

    def __init__(self, scratch: Path, environments: Path) -> None:
        self.scratch = scratch
        self.environments = environments
        self.url = ""
        self.hugging_face = scratch / "hf"

    def bin(self, name: str) -> Path:
        """The programs of a client's environment, made where it is missing."""
        folder = self.environments / name
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            run([sys.executable, "-m", "venv", str(folder)])
            for pin in PINS[name]:
                run([str(folder / "bin" / "pip"), "install", "--quiet", pin])
            (folder / "ready").touch()
        return folder / "bin"


def run(command: list[str], **settings: object) -> str:
    """What a command prints; a RuntimeError with the end of it where it fails."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        **settings,  # type: ignore[call-overload]
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} exits with {done.returncode}: {done.stdout}")
    return str(done.stdout)


def check_npm(place: Place) -> str:
    folder = place.environments / "npm"
    if not (folder / "node_modules" / "openai").exists():
        folder.mkdir(parents=True, exist_ok=True)
        run(["npm", "install", "--silent", "--prefix", str(folder), NPM_PIN])
    script = shutil.copy(HERE / "openai_npm.mjs", folder)
    return run(["node", str(script), f"{place.url}/v1", MODEL]).strip().splitlines()[-1]


def check_llm(place: Place) -> str:
    home = place.scratch / "llm"
    home.mkdir()
    (home / "extra-openai-models.yaml").write_text(
        f"- model_id: local\n  model_name: {MODEL}\n  api_base: {place.url}/v1\n"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"}
    asked = ["What is the capital of France?", "-m", "local", "-o", "temperature", "0"]
    answer = run([str(place.bin("llm") / "llm"), *asked], env=environment)
    assert "Paris" in answer, answer
    return answer.strip()


def check_lm_eval(place: Place) -> str:
    """lm-eval's log-likelihoods of every choice, against transformers in float32."""
    folder = place.scratch / "lm-eval"
    folder.mkdir()
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    (folder / "task.yaml").write_text(TASK.format(data=data))
    given = f"model={MODEL},base_url={place.url}/v1/completions,tokenizer={place.hugging_face}"
    run(
        [
            str(place.bin("lm-eval") / "lm_eval"),
            *("--model", "local-completions", "--model_args", f"{given},num_concurrent=4"),
            *("--tasks", "tpuinfer_choices", "--include_path", str(folder)),
            *("--output_path", str(folder / "out"), "--log_samples"),
        ],
        env={**os.environ, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1"},
    )
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    pairs, found = [], []
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        for given_pair, answer in zip(
            sample["arguments"].values(), sample["filtered_resps"], strict=True
        ):
            pairs.append((given_pair["arg_0"], given_pair["arg_1"]))
            found.append(float(answer[0]))
    assert len(found) == sum(len(one["choices"]) for one in QUESTIONS), found
    worst = float(np.abs(np.array(found) - likelihoods(place.hugging_face, pairs)).max())
    assert worst < 1e-3, f"log-likelihoods are {worst:.2e} from transformers'"
    return f"{len(found)} log-likelihoods within {worst:.1e} of transformers'"


def likelihoods(folder: Path, pairs: list[tuple[str, str]]) -> np.ndarray:
    """The log p(continuation | context) of each pair by transformers, cut as lm-eval cuts them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sums = []
    for context, continuation in pairs:
        whole = tokenizer(context + continuation)["input_ids"]
        start = len(tokenizer(context)["input_ids"])
        with torch.inference_mode():
            scores = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        sums.append(sum(float(scores[at - 1, whole[at]]) for at in range(start, len(whole))))
    return np.array(sums)


def check_guidellm(place: Place) -> str:
    report = place.scratch / "guidellm.json"
    run(
        [
            str(place.bin("guidellm") / "guidellm"),
            "run",
            *("--backend", f"kind=openai_http,target={place.url},model={MODEL}"),
            *("--profile", "kind=concurrent,streams=4"),
            *("--constraint", "kind=max_requests,count=20"),
            *("--tokenizer", f"kind=hf_auto,model={place.hugging_face}"),
            *("--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16"),
            *("--output", f"kind=json,path={report}"),
        ],
        cwd=place.scratch,
        env={**os.environ, "COLUMNS": "200"},
    )
    text = report.read_text()
    totals = json.loads(text)["benchmarks"][0]["metrics"]["request_totals"]
    assert totals["successful"] == 20, totals
    assert totals["errored"] == 0, totals
    return f"{totals['successful']} of {totals['total']} requests successful"


CHECKS: dict[str, Callable[[Place], str]] = {
    "npm": check_npm,
    "llm": check_llm,
    "lm-eval": check_lm_eval,
    "guidellm": check_guidellm,
}


def start(place: Place) -> subprocess.Popen[str]:
    """A server on a free port, ready; its address goes to `place.url`."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tpuinfer.serve", "--dtype", "float32", "--port", "0"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"ready after .*?(http://\S+)/v1", line):
            place.url = found[1]
            break
        print(line, end="")
    deadline = time.monotonic() + 30
    while place.url and time.monotonic() < deadline:
        with urllib.request.urlopen(f"{place.url}/ready") as reply:
            if reply.status == 200:
                return server
    raise RuntimeError("the server did not get ready")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *CHECKS], help="which clients; all")
    names = parser.parse_args().names or list(CHECKS)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), ROOT / ".venv" / "clients")
        run(
            [
                *(sys.executable, "-m", "tpuinfer.convert", "--model", MODEL),
                *("--dtype", "float32", "--to", "hf", "--output", str(place.hugging_face)),
            ],
            cwd=ROOT,
        )
        server = start(place)
        try:
            for name in names:
                try:
                    print(f"{name:10} ok: {CHECKS[name](place)}", flush=True)
                except Exception as error:
                    failed += 1
                    print(f"{name:10} FAILED: {error}", flush=True)
        finally:
            server.terminate()
            server.wait(60)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
