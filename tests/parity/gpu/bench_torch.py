#!/usr/bin/env python3
"""PyTorch's times for the shapes of `smelt bench gpu`: products in bf16 and FP8, by expert, attention, norm, AdamW.

Prints a line for each and writes them to the file named on the command line. What an installation does not have is
skipped, with the reason. It has not run on a GPU yet.
"""

import json
import sys

import torch

results = []


def milliseconds(work, repeats=20):
    """Median time of `work` on the device."""
    for _ in range(3):
        work()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in events)[repeats // 2]


def measure(what, work, flops=None, moved=None):
    """One line; `flops` and `moved` bytes of one call."""
    try:
        ms = milliseconds(work)
    except Exception as error:  # an operation that this version or this GPU does not have
        row = {"what": what, "skipped": f"{type(error).__name__}: {str(error)[:200]}"}
    else:
        row = {"what": what, "ms": ms}
        if flops:
            row["tflops"] = flops / ms / 1e9
        if moved:
            row["gb_per_second"] = moved / ms / 1e6
    results.append(row)
    print(row, flush=True)


def normal(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def by_rows(x):
    """E4M3 with a scale per 1×128, and the scales `[M, K/128]`, contiguous along M."""
    m, k = x.shape
    tiles = x.float().view(m, k // 128, 128)
    scale = tiles.abs().amax(-1).clamp(min=1e-4) / 448
    q = (tiles / scale[..., None]).view(m, k).to(torch.float8_e4m3fn)
    return q, scale.t().contiguous().t()


def by_blocks(w):
    """E4M3 with a scale per 128×128, and the scales `[N/128, K/128]`, rows padded to four."""
    n, k = w.shape
    tiles = w.float().view(n // 128, 128, k // 128, 128)
    scale = tiles.abs().amax((1, 3)).clamp(min=1e-4) / 448
    q = (tiles / scale[:, None, :, None]).view(n, k).to(torch.float8_e4m3fn)
    padded = torch.zeros(n // 128, (k // 128 + 3) // 4 * 4, device="cuda")
    padded[:, : k // 128] = scale
    return q, padded[:, : k // 128]


def products():
    for what, m, n, k in [
        ("dense", 8192, 8192, 8192),
        ("q", 16384, 3072, 2048),
        ("DeepSeek-V3 dense", 4096, 7168, 16384),
    ]:
        a, b, flops = normal(m, k), normal(n, k), 2 * m * n * k
        measure(f"bf16 {what}", lambda: a @ b.t(), flops)
        (qa, sa), (qb, sb) = by_rows(a), by_blocks(b)
        scaled = lambda: torch._scaled_mm(qa, qb.t(), scale_a=sa, scale_b=sb.t(), out_dtype=torch.bfloat16)
        measure(f"fp8 {what}", scaled, flops)
        dy = normal(m, n)
        measure(f"bf16 {what}, weight gradient", lambda: dy.t() @ a, flops)
    for what, rows, n, k in [("gate and up", 3072, 1536, 2048), ("down", 3072, 2048, 768)]:
        experts, flops = 32, 2 * 32 * rows * n * k
        a, b = normal(experts * rows, k), normal(experts, n, k)
        ends = torch.arange(1, experts + 1, device="cuda", dtype=torch.int32) * rows
        measure(f"bf16 {what}", lambda: torch._grouped_mm(a, b.transpose(-2, -1), offs=ends), flops)
        dy = normal(experts * rows, n)
        measure(f"bf16 {what}, weight gradient", lambda: torch._grouped_mm(dy.t(), a, offs=ends), flops)


def attention():
    q, k, v = normal(4, 16, 4096, 192), normal(4, 16, 4096, 192), normal(4, 16, 4096, 128)
    for x in (q, k, v):
        x.requires_grad_()
    flops = 2 * 4 * 16 * 4096 * 4096 // 2 * (192 + 128)
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    measure("attention forward, 4×16×4096×192/128", attend, flops)
    d_o = normal(4, 16, 4096, 128)
    both = lambda: torch.autograd.grad(attend(), (q, k, v), d_o)
    measure("attention forward and backward, 4×16×4096×192/128", both, 3.5 * flops)


def rows():
    x, y = (torch.empty(1 << 28, device="cuda") for _ in range(2))
    measure("copy of 1 GiB", lambda: y.copy_(x), moved=2 * 4 * (1 << 28))
    del x, y
    x, gain = torch.randn(16384, 2048, device="cuda"), torch.ones(2048, device="cuda")
    measure("rms_norm", lambda: torch.nn.functional.rms_norm(x, (2048,), gain), moved=8 * x.numel())
    w = torch.nn.Parameter(torch.zeros(100_000_000, device="cuda"))
    w.grad = torch.zeros_like(w)
    optimizer = torch.optim.AdamW([w], fused=True)
    measure("adamw, 100M parameters, moments in fp32", optimizer.step, moved=28 * w.numel())


if __name__ == "__main__":
    print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())
    for part in (rows, products, attention):
        part()
    with open(sys.argv[1] if len(sys.argv) > 1 else "torch.json", "w") as file:
        json.dump(results, file, indent=1)
