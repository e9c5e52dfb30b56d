"""Loads a checkpoint of a finished pipeline with transformers and compares its logits with ours, to 1e-4.

    pip install -r tests/parity/requirements.txt
    python tests/parity/logits_with_transformers.py artifacts quickstart aligned

Prints the largest difference over 64 random documents, and that of greedy answers to one chat.
"""
import json, pathlib, subprocess, sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from read_with_others import files


def main(store, pipeline, job):
    store = pathlib.Path(store)
    a = json.loads((store / "pipelines" / pipeline / f"{job}.json").read_text())["artifact"]
    manifest = json.loads((store / "artifacts" / a["stage"] / a["fingerprint"] / f"{a['edition']}.json").read_text())
    folder = files(store, manifest, "model")[0].parent
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (64, 96), generator=generator)
    with torch.no_grad():
        theirs = model(ids).logits.reshape(-1, model.config.vocab_size)
    command = ["cargo", "run", "--release", "--quiet", "--example", "logits", "--", str(folder)]
    said = subprocess.run(command, input=json.dumps(ids.tolist()), capture_output=True, text=True, check=True).stdout
    ours = torch.tensor(json.loads(said))
    worst = (ours - theirs).abs().max().item()
    print(f"{job}: {ours.shape[0]} rows of {ours.shape[1]} logits, largest {theirs.abs().max():.1f}, off by at most {worst:.1e}")
    assert worst < 1e-4, worst
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "3+4*2-1"}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        answer = model.generate(**prompt, max_new_tokens=60, do_sample=False)
        print("3+4*2-1 ->", tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main(*sys.argv[1:4])
