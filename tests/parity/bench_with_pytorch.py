"""Training and generation of the same models by smelt and by PyTorch with transformers, in turn, as ratios.

    pip install -r tests/parity/requirements.txt
    cargo build --release && python tests/parity/bench_with_pytorch.py target/release/smelt

Each measurement is a process of its own; the two take turns, so that both meet the same machine, and the medians over the rounds are
compared. PyTorch runs at its best settings found: grouped experts, eager attention, fused AdamW; the smallest model also compiled;
bf16 by autocast. Prints a table; --output writes JSON lines as well.
"""
import argparse, json, os, pathlib, resource, statistics, subprocess, sys, time

SHARED = dict(n_shared_experts=1, first_k_dense_replace=1, routed_scaling_factor=2.5, max_position_embeddings=512)
MODELS = {
    "1m": dict(vocab_size=1024, hidden_size=96, num_hidden_layers=4, num_attention_heads=4, q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=24,
               qk_rope_head_dim=8, v_head_dim=24, n_routed_experts=8, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=96, intermediate_size=256),
    "10m": dict(vocab_size=4096, hidden_size=256, num_hidden_layers=6, num_attention_heads=8, q_lora_rank=96, kv_lora_rank=64, qk_nope_head_dim=32,
                qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=8, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=192, intermediate_size=704),
    "50m": dict(vocab_size=8192, hidden_size=640, num_hidden_layers=10, num_attention_heads=10, q_lora_rank=256, kv_lora_rank=128, qk_nope_head_dim=64,
                qk_rope_head_dim=32, v_head_dim=64, n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2, moe_intermediate_size=320, intermediate_size=1792),
}  # fmt: skip
SEQUENCES, CONTEXT, PROMPT, NEW = 8, 256, 32, 64


def model(name, experts="grouped_mm"):
    import logging, warnings

    warnings.filterwarnings("ignore"), logging.disable(logging.WARNING)
    import torch
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    sizes = MODELS[name] | SHARED
    config = DeepseekV3Config(**sizes, num_key_value_heads=sizes["num_attention_heads"], rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}, dtype="float32")
    config._attn_implementation, config._experts_implementation = "eager", experts
    return torch, DeepseekV3ForCausalLM(config).float()


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work_train(name, precision, compiled):
    torch, m = model(name)
    m.train()
    optimizer = torch.optim.AdamW(m.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(m) if compiled else m
    ids = torch.randint(0, m.config.vocab_size, (SEQUENCES, CONTEXT))
    times = []
    for _ in range(3 if name == "50m" else 8):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return dict(tokens_per_second=SEQUENCES * CONTEXT / statistics.median(times[2:] or times[1:]), peak_memory_bytes=peak())


def work_generate(name, batch):
    torch, m = model(name)
    m.eval()
    ids = torch.randint(0, m.config.vocab_size, (batch, PROMPT))
    how = dict(attention_mask=torch.ones_like(ids), do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0)
    m.generate(ids, max_new_tokens=8, **how)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        out = m.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, **how)
        times.append(time.perf_counter() - start)
        assert out.shape[1] == PROMPT + NEW
    return dict(tokens_per_second=batch * NEW / statistics.median(times), peak_memory_bytes=peak())


def ours(smelt, *args):
    said = subprocess.run([smelt, "bench", *args, "--format", "json"], capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in said.splitlines() if line.strip()]


def theirs(*args):
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, __file__, "--work", *map(str, args)], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"PyTorch failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smelt", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=pathlib.Path)
    a = parser.parse_args()
    smelt, out = str(a.smelt.resolve()), a.output and a.output.open("w")
    os.environ["OMP_NUM_THREADS"] = str(a.threads)

    def compare(what, mine, others):
        """`others`: PyTorch's settings by name; the best of them counts."""
        ours_seen, theirs_seen = [], {name: [] for name in others}
        for _ in range(a.rounds):
            ours_seen.append(mine())
            for name, args in others.items():
                theirs_seen[name].append(theirs(*args))
        rate = lambda seen: statistics.median(x["tokens_per_second"] for x in seen)
        memory = lambda seen: max(x["peak_memory_bytes"] for x in seen) / 1e6
        best = max(theirs_seen, key=lambda name: rate(theirs_seen[name]))
        row = dict(what=what, smelt=rate(ours_seen), pytorch=rate(theirs_seen[best]), setting=best, ratio=rate(ours_seen) / rate(theirs_seen[best]),
                   smelt_mb=memory(ours_seen), pytorch_mb=memory(theirs_seen[best]), share_of_sgemm=ours_seen[-1].get("share_of_sgemm"))  # fmt: skip
        if out:
            print(json.dumps(row), file=out, flush=True)
        share = f", {100 * row['share_of_sgemm']:.0f} % of sgemm" if row["share_of_sgemm"] else ""
        print(f"{what:22} {row['smelt']:>8.0f} {row['pytorch']:>8.0f} tokens/s  {row['ratio']:5.2f}x ({best})  "
              f"{row['smelt_mb']:5.0f} {row['pytorch_mb']:5.0f} MB{share}", flush=True)  # fmt: skip

    print(f"{'':22} {'smelt':>8} {'PyTorch':>8}", flush=True)
    for name in a.models:
        for precision in ("fp32", "bf16"):
            train = lambda: ours(smelt, "train", "--models", name, "--precision", precision, "--threads", str(a.threads))[0]
            settings = {"eager": ("train", name, precision, 0)} | ({"compiled": ("train", name, precision, 1)} if name == "1m" else {})
            compare(f"train {name} {precision}", train, settings)
    for name in [n for n in a.models if n == "10m"]:
        for batch in (1, 16):
            generate = lambda: ours(smelt, "generate", "--models", name, "--batch", str(batch), "--threads", str(a.threads))[0]
            compare(f"generate {name} x{batch}", generate, {"eager": ("generate", name, batch)})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
        kind, name, *rest = sys.argv[2:]
        found = work_train(name, rest[0], rest[1] == "1") if kind == "train" else work_generate(name, int(rest[0]))
        print(json.dumps(found))
    else:
        main()
