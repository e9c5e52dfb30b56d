"""GRPO at temperatures other than 1, by PyTorch: the loss and the norm of its gradient on fixed rollouts.

    python tests/parity/grpo_with_pytorch.py > tests/parity/engine/llama/grpo.json

Log-probabilities are log-softmax(logits / T), as in TRL and verl, of the policy, of the sampler (`old`, the policy with
noise) and of the reference. The objective is Shao et al. 2024, eq. 3: per answer the mean over its tokens of
min(ratio A, clip(ratio) A) - beta k3, and the mean over the answers. Needs torch, transformers and numpy; the model is
the case `llama` of tests/parity/engine.
"""

import json
import pathlib

import torch
from transformers import AutoModelForCausalLM

FOLDER = pathlib.Path(__file__).parent / "engine" / "llama" / "hf"
CLIP, BETA = 0.2, 0.04


def token_logps(model, ids, prompt, temperature):
    logits = model(input_ids=ids[None]).logits[0, :-1] / temperature
    logps = torch.log_softmax(logits.double(), dim=-1)
    return logps.gather(1, ids[1:, None])[prompt - 1 :, 0]


def main():
    torch.manual_seed(0)
    load = lambda: AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager")
    policy, reference = load().train(), load()
    with torch.no_grad():
        for weight in reference.parameters():
            weight += 0.01 * torch.randn_like(weight)
    prompt = 3
    answers = [torch.randint(0, 48, (prompt + n,)) for n in (5, 2, 7, 4)]
    advantages = [1.2, -0.7, 0.3, -0.8]
    cases = []
    for temperature in (1.0, 0.6, 1.7):
        policy.zero_grad()
        loss, old, ref = 0.0, [], []
        for ids, advantage in zip(answers, advantages):
            logps = token_logps(policy, ids, prompt, temperature)
            with torch.no_grad():
                reference_logps = token_logps(reference, ids, prompt, temperature)
                old_logps = logps + 0.2 * torch.randn_like(logps)
            ratio = torch.exp(logps - old_logps)
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            gap = reference_logps - logps
            loss = loss + (-surrogate + BETA * (gap.exp() - gap - 1)).mean() / len(answers)
            old.append(old_logps.tolist())
            ref.append(reference_logps.tolist())
        loss.backward()
        norm = torch.sqrt(sum((weight.grad.double() ** 2).sum() for weight in policy.parameters()))
        cases.append(
            {"temperature": temperature, "loss": loss.item(), "gradient_norm": norm.item(), "old": old, "reference": ref}
        )
    print(
        json.dumps(
            {"clip": CLIP, "beta": BETA, "prompt": prompt, "ids": [ids.tolist() for ids in answers],
             "advantages": advantages, "cases": cases}, indent=1,
        )
    )


if __name__ == "__main__":
    main()
