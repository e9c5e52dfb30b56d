"""Draws random models and batches, and what transformers computes with them, for the engine's parity tests.

    pip install -r tests/parity/requirements.txt
    python tests/parity/draw_cases.py /tmp/cases --count 20 --seed 1
    SMELT_PARITY=/tmp/cases cargo test --release -p smelt-model -p smelt-train -- --nocapture as_in mtp_modules

Of every kind in turn: a DeepSeek-V3 (any of: no query compression, one head or three, no groups, two experts, no layer of experts,
tied, YaRN, no interleaving, weights that are not normalised), a dense model of Qwen2, Qwen3 or Llama, an MTP module, and
20 steps of training (plain or with that module; balance by sequence, by batch or none). Everything is f32 on the CPU with eager
attention. The layers are transformers' own; the MTP module, the balance losses, the bias rule and the schedule are
written here after the DeepSeek-V3 report (arXiv 2412.19437, §2.1.2, §2.2, §4.2).
"""
import argparse, json, math, pathlib, random

import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

STEPS = 20


def yarn(draw):
    scaling = {"rope_type": "yarn", "factor": draw.choice([2.0, 4.0, 40.0]), "original_max_position_embeddings": draw.choice([32, 64, 4096])}
    if draw.random() < 0.7:
        scaling |= {"mscale": draw.choice([0.7, 1.0]), "mscale_all_dim": draw.choice([0.7, 1.0])}
    if draw.random() < 0.5:
        scaling |= {"beta_fast": draw.choice([16, 32]), "beta_slow": draw.choice([1, 2])}
    return scaling


def deepseek_config(draw, **fixed):
    groups = draw.choice([1, 1, 2, 4])
    experts = groups * draw.choice([2, 3, 4])
    kept = draw.randint(1, groups)
    layers = draw.randint(1, 3)
    theta = draw.choice([1000.0, 10000.0])
    fields = dict(
        vocab_size=draw.choice([97, 256]), hidden_size=draw.choice([24, 48, 64]), intermediate_size=draw.choice([40, 96]),
        moe_intermediate_size=draw.choice([16, 24]), num_hidden_layers=layers, num_attention_heads=draw.randint(1, 4),
        n_shared_experts=draw.choice([1, 1, 2]), n_routed_experts=experts, num_experts_per_tok=draw.randint(1, min(4, kept * experts // groups)),
        n_group=groups, topk_group=kept, first_k_dense_replace=draw.randint(0, layers), norm_topk_prob=draw.random() < 0.8,
        routed_scaling_factor=draw.choice([1.0, 2.5]), q_lora_rank=draw.choice([None, 12, 32]), kv_lora_rank=draw.choice([8, 16, 20]),
        qk_nope_head_dim=draw.choice([8, 12, 16]), qk_rope_head_dim=draw.choice([4, 8, 16]), v_head_dim=draw.choice([8, 12, 24]),
        max_position_embeddings=256, rms_norm_eps=draw.choice([1e-6, 1e-5]), tie_word_embeddings=draw.random() < 0.3,
        rope_interleave=draw.random() < 0.7, num_nextn_predict_layers=0, attention_bias=False, attention_dropout=0.0, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    fields |= fixed
    fields["num_key_value_heads"] = fields["num_attention_heads"]
    fields["rope_parameters"] = {"rope_theta": theta, **(yarn(draw) if draw.random() < 0.4 else {"rope_type": "default"})}
    return transformers.DeepseekV3Config(**fields)


def dense_config(draw, family):
    heads = draw.choice([1, 2, 3, 4, 6])
    theta = draw.choice([10000.0, 500000.0])
    rope = {"rope_theta": theta, "rope_type": "default"}
    if family == "llama" and draw.random() < 0.5:
        rope |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    elif draw.random() < 0.3:
        rope |= yarn(draw)
    fields = dict(
        vocab_size=draw.choice([97, 256]), hidden_size=16 * heads, intermediate_size=draw.choice([40, 160]), num_hidden_layers=draw.randint(1, 3),
        num_attention_heads=heads, num_key_value_heads=draw.choice([n for n in (1, 2, 3, 6) if heads % n == 0]), max_position_embeddings=256,
        rms_norm_eps=draw.choice([1e-6, 1e-5]), tie_word_embeddings=draw.random() < 0.5, rope_parameters=rope, bos_token_id=0,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    if family != "qwen2":
        fields |= dict(head_dim=draw.choice([8, 16, 20]), attention_bias=draw.random() < 0.3)
    classes = {"qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig}
    return classes[family](**fields)


def build(config, generator, std=1.0, router=1.0, bias=0.05):
    """A model whose every tensor says something: gains around 1, weights of unit output, biases that matter."""
    config._attn_implementation = config._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    assert model.config._attn_implementation == "eager"
    fill(model, generator, std, router, bias)
    model.tie_weights()
    return model


@torch.no_grad()
def fill(module, generator, std, router, bias):
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            p.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))
        else:
            p.copy_(noise * (0.5 if "embed" in name else p.shape[-1] ** -0.5) * (router if name.endswith("gate.weight") else std))
    for name, b in module.named_buffers():
        if name.endswith("e_score_correction_bias"):  # above 0: masked groups count as 0 in transformers
            b.copy_(bias * torch.rand(b.shape, generator=generator))


def on_disk(named, prefix=""):
    """Packed experts [E, 2I, H] and [E, H, I] as one tensor each, as checkpoints hold them."""
    for name, value in named:
        name, value = prefix + name, value.detach()
        if name.endswith("experts.gate_up_proj"):
            for e, both in enumerate(value):
                for part, half in zip(("gate_proj", "up_proj"), both.chunk(2)):
                    yield name.replace("gate_up_proj", f"{e}.{part}.weight"), half
        elif name.endswith("experts.down_proj"):
            for e, one in enumerate(value):
                yield name.replace("down_proj", f"{e}.down_proj.weight"), one
        else:
            yield name, value


def values(model, extra=()):
    """Parameters and correction biases by their names on disk; a tied head is left out."""
    named = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")}
    found = dict(on_disk(named.items()))
    for prefix, module in extra:
        named = dict(module.named_parameters()) | {n: b for n, b in module.named_buffers() if n.endswith("e_score_correction_bias")}
        found |= dict(on_disk(named.items(), prefix))
    return {name: value.clone().contiguous() for name, value in found.items()}


def gradients(model, extra=()):
    zero = lambda p: torch.zeros_like(p) if p.grad is None else p.grad
    found = dict(on_disk((n, zero(p)) for n, p in model.named_parameters()))
    for prefix, module in extra:
        found |= dict(on_disk(((n, zero(p)) for n, p in module.named_parameters()), prefix))
    return {f"grad.{name}": value.clone().contiguous() for name, value in found.items()}


def write_config(folder, config, **more):
    folder.mkdir(parents=True, exist_ok=True)
    fields = json.loads(config.to_json_string(use_diff=False)) | more
    (folder / "config.json").write_text(json.dumps(fields, indent=1))


class Routes:
    """Logits and choices of every router while a model runs, and how sure each choice is."""

    def __init__(self, config, gates):
        self.config, self.seen = config, {}
        self.hooks = [gate.register_forward_hook(lambda m, x, out, i=i: self.see(i, m, x[0])) for i, gate in gates.items()]

    def see(self, layer, gate, x):
        c = self.config
        logits = torch.nn.functional.linear(x.reshape(-1, c.hidden_size).float(), gate.weight.float())
        with torch.no_grad():
            choice = logits.sigmoid() + gate.e_score_correction_bias
            grouped = choice.view(-1, c.n_group, c.n_routed_experts // c.n_group)
            of_group = grouped.topk(2, -1).values.sum(-1)
            best = of_group.sort(-1, descending=True)
            gap = (best.values[:, c.topk_group - 1] - best.values[:, c.topk_group]).min() if c.topk_group < c.n_group else torch.tensor(1.0)
            kept = torch.zeros_like(of_group, dtype=torch.bool).scatter_(1, best.indices[:, : c.topk_group], True)
            choice = grouped.masked_fill(~kept[..., None], -math.inf).flatten(1).sort(-1, descending=True)
            k = c.num_experts_per_tok
            if k < c.topk_group * c.n_routed_experts // c.n_group:
                gap = torch.minimum(gap, (choice.values[:, k - 1] - choice.values[:, k]).min())
            self.seen[layer] = dict(logits=logits, ids=choice.indices[:, :k].sort(-1).values, gap=gap.item())

    def gap(self):
        return min([seen["gap"] for seen in self.seen.values()], default=1.0)

    def close(self):
        for hook in self.hooks:
            hook.remove()


def gates(model):
    return {i: layer.mlp.gate for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")}


def draw_ids(shape, vocabulary, generator):
    return torch.randint(0, vocabulary, shape, generator=generator)


def forward_case(folder, config, generator):
    model = build(config, generator)
    for _ in range(500):  # until no choice hangs on rounding
        ids = draw_ids((2, 21), config.vocab_size, generator)
        routes = Routes(config, gates(model) if config.model_type == "deepseek_v3" else {})
        model.zero_grad(set_to_none=True)
        out = model(input_ids=ids, labels=ids, use_cache=False)
        routes.close()
        if routes.gap() > 1e-4:
            break
    out.loss.backward()
    expected = {"input_ids": ids, "logits": out.logits.detach(), "loss": out.loss.detach().reshape(1)} | gradients(model)
    for layer, seen in routes.seen.items():
        expected[f"router.{layer}.topk_idx"] = seen["ids"]
    with torch.no_grad():
        greedy = ids[:1, :8]
        for _ in range(12):
            greedy = torch.cat([greedy, model(greedy, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    expected["gen_ids"] = greedy
    write_config(folder / "hf", config)
    save_file(values(model), folder / "hf/model.safetensors", metadata={"format": "pt"})
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")


class Mtp(torch.nn.Module):
    """Predicts the token after the next (report §2.2), in the layout of the released checkpoint: [embedding; hidden]."""

    def __init__(self, config):
        super().__init__()
        layer = v3.DeepseekV3DecoderLayer(config, config.num_hidden_layers)
        self.eh_proj = torch.nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        for name in ("enorm", "hnorm"):
            self.add_module(name, v3.DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps))
        self.shared_head = torch.nn.Module()
        self.shared_head.norm = v3.DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        for name, module in layer.named_children():
            self.add_module(name, module)
        self.layer = [layer]  # not a second owner of the same parameters

    def forward(self, model, hidden, ids):
        """hidden [B, T, H] of tokens 0..T, ids [B, T] the tokens after them: logits of those after these."""
        e = self.enorm(model.model.embed_tokens(ids))
        x = self.eh_proj(torch.cat([e, self.hnorm(hidden)], -1))
        length = ids.shape[1]
        mask = torch.full((length, length), -math.inf).triu(1)[None, None]
        rope = model.model.rotary_emb(x, torch.arange(length)[None])
        x = self.layer[0](x, attention_mask=mask, position_embeddings=rope)
        x = x[0] if isinstance(x, tuple) else x
        return model.lm_head(self.shared_head.norm(x))


def losses(model, mtp, tokens, routes):
    """Next-token loss, MTP loss, and the logits of both."""
    out = model.model(tokens[:, :-1], use_cache=False)
    logits = model.lm_head(out.last_hidden_state)
    of = lambda logits, targets: cross_entropy(logits.flatten(0, 1), targets.flatten())
    main = of(logits, tokens[:, 1:])
    if mtp is None:
        return main, torch.zeros(()), logits, None
    more = mtp(model, out.last_hidden_state[:, :-1], tokens[:, 1:-1])
    return main, of(more, tokens[:, 2:]), logits, more


def with_mtp(config, generator, **how):
    config.first_k_dense_replace = min(config.first_k_dense_replace, config.num_hidden_layers)
    model = build(config, generator, **how)
    mtp = Mtp(model.config).float().eval()
    fill(mtp, generator, how.get("std", 1.0), how.get("router", 1.0), how.get("bias", 0.05))
    return model, mtp, f"model.layers.{config.num_hidden_layers}."


def mtp_case(folder, config, generator):
    model, mtp, prefix = with_mtp(config, generator)
    extra = [(prefix, mtp)]
    for _ in range(500):
        tokens = draw_ids((2, 20), config.vocab_size, generator)
        routes = Routes(config, gates(model) | {config.num_hidden_layers: mtp.mlp.gate})
        model.zero_grad(set_to_none=True), mtp.zero_grad(set_to_none=True)
        main, more, logits, mtp_logits_found = losses(model, mtp, tokens, routes)
        routes.close()
        if routes.gap() > 1e-4:
            break
    (main + 0.3 * more).backward()
    expected = {
        "tokens": tokens, "main_logits": logits, "embed_first.post_norm.mtp_logits": mtp_logits_found,
        "embed_first.post_norm.losses": torch.stack([main, more]), "router.mtp.topk_idx": routes.seen[config.num_hidden_layers]["ids"],
    }  # fmt: skip
    expected |= gradients(model, extra)
    write_config(folder / "hf", config, num_nextn_predict_layers=1)
    save_file(values(model, extra), folder / "hf/model.safetensors", metadata={"format": "pt"})
    expected = {k: v.detach().contiguous() for k, v in expected.items()}
    save_file(expected, folder / "expected.safetensors", metadata={"lambda": "0.3"})


def balance_loss(config, seen, sequences, scope):
    """Report eq. 17–20: f counts the best K of the raw scores; 1 where all is even."""
    scores = seen["logits"].sigmoid()
    experts, k = config.n_routed_experts, config.num_experts_per_tok
    chosen = torch.zeros_like(scores).scatter(1, scores.detach().topk(k, -1).indices, 1.0)
    share = scores / scores.sum(-1, keepdim=True)
    parts = sequences if scope == "seq" else 1
    f = chosen.view(parts, -1, experts).mean(1) * experts / k
    return (f * share.view(parts, -1, experts).mean(1)).sum(-1).mean()


def rate(h, step):
    """Warm-up, constant, cosine, constant; steps count from 1."""
    if step <= h["warm"]:
        return h["peak"] * step / h["warm"]
    if step <= h["warm"] + h["const"]:
        return h["peak"]
    u = min(1.0, (step - h["warm"] - h["const"]) / h["decay"])
    return h["min_lr"] + (h["peak"] - h["min_lr"]) * (1 + math.cos(math.pi * u)) / 2


def training_case(folder, config, generator, draw):
    h = dict(steps=STEPS, batch=draw.choice([1, 2, 3]), seq=draw.choice([16, 24]), peak=2e-3, min_lr=2e-4, warm=draw.choice([1, 4]), const=6,
             decay=6, clip=draw.choice([0.5, 1.0]), wd=0.1, gamma=draw.choice([0.0, 0.02]), aux=draw.choice(["seq", "batch", "none"]),
             aux_f="paper", mtp_aux=1, lam=draw.choice([0.1, 0.3]), mtp=draw.choice([0, 1]))  # fmt: skip
    h["alpha"] = 0.0 if h["aux"] == "none" else draw.choice([1e-3, 1e-2])
    how = dict(std=0.5, router=3.0, bias=0.0)
    if h["mtp"]:
        model, mtp, prefix = with_mtp(config, generator, **how)
    else:
        model, mtp, prefix = build(config, generator, **how), None, ""
    extra = [(prefix, mtp)] if mtp else []
    routers = gates(model) | ({config.num_hidden_layers: mtp.mlp.gate} if mtp else {})
    write_config(folder / "init", config, num_nextn_predict_layers=h["mtp"])
    save_file(values(model, extra), folder / "init/model.safetensors", metadata={"format": "pt"})
    (folder / "hyper.json").write_text(json.dumps(h, indent=1))
    # tokens with something to learn: arithmetic sequences
    start, stride = (torch.randint(0, n, (STEPS, h["batch"], 1), generator=generator) for n in (config.vocab_size, 5))
    tokens = (start + (stride + 1) * torch.arange(h["seq"] + 1)) % config.vocab_size
    save_file({"tokens": tokens.contiguous()}, folder / "batches.safetensors")

    trained = list(model.parameters()) + (list(mtp.parameters()) if mtp else [])
    groups = [{"params": [p for p in trained if p.dim() >= 2], "weight_decay": h["wd"]}, {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    series, tables, surest = {}, {}, 1.0
    for step in range(1, STEPS + 1):
        routes = Routes(config, routers)
        main, more, _, _ = losses(model, mtp, tokens[step - 1], routes)
        routes.close()
        surest = min(surest, routes.gap())
        none = torch.zeros(())
        # the module's sequences are one token shorter
        balance = none if h["aux"] == "none" else sum((balance_loss(config, seen, h["batch"], h["aux"]) for seen in routes.seen.values()), none)
        loss = main + h["lam"] * more + h["alpha"] * balance
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for p in trained:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad  # an expert without tokens decays all the same
        norm = torch.nn.utils.clip_grad_norm_(trained, h["clip"])
        for group in optimizer.param_groups:
            group["lr"] = rate(h, step)
        optimizer.step()
        for layer, seen in routes.seen.items():
            counts = torch.bincount(seen["ids"].flatten(), minlength=config.n_routed_experts)
            bias = routers[layer].e_score_correction_bias
            with torch.no_grad():
                bias += h["gamma"] * torch.sign((counts.sum() - config.n_routed_experts * counts).float())
            for name, value in (("bias", bias.clone()), ("count", counts), ("route", seen["ids"].to(torch.uint8))):
                tables.setdefault(f"{name}.{layer}", []).append(value)
        told = dict(loss=loss, main=main, mtp=more, balance=balance, grad_norm=norm, lr=rate(h, step))
        for name, value in told.items():
            series.setdefault(f"step.{name}", []).append(float(value))
    expected = {name: torch.tensor(of, dtype=torch.float64) for name, of in series.items()}
    expected |= {name: torch.stack(of) for name, of in tables.items()}
    save_file(expected, folder / "expected.safetensors")
    save_file(values(model, extra), folder / "final.safetensors", metadata={"format": "pt"})
    return surest


def sure_training(folder, draw, generator, seed):
    """Draws until no choice of 20 steps hangs on rounding: what differs in the last bit must not differ in a route."""
    for attempt in range(200):
        experts, k = draw.choice([2, 4, 6]), draw.choice([1, 2])
        # One choice whose weight is normalised has the weight 1: its router's gradient is mere rounding, which AdamW makes steps of.
        normalised = {"norm_topk_prob": False} if k == 1 else {}
        config = deepseek_config(draw, n_group=1, topk_group=1, n_routed_experts=experts, num_experts_per_tok=k, **normalised)
        if training_case(folder, config, generator, draw) > 2e-5:
            return
    raise SystemExit(f"seed {seed}: no training whose routes are sure")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=12, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    for i in range(a.count):
        seed = a.seed * 1000 + i
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        forward_case(a.out / f"deepseek-{seed}", deepseek_config(draw), generator)
        family = ["qwen2", "qwen3", "llama"][i % 3]
        forward_case(a.out / f"{family}-{seed}", dense_config(draw, family), generator)
        mtp_case(a.out / f"mtp-{seed}", deepseek_config(draw), generator)
        sure_training(a.out / f"training-{seed}", draw, generator, seed)
        print(f"seed {seed}: 4 cases", flush=True)


main()
