"""A Hugging Face causal language model that trains without its logits: `patch_transformers`, before and after.

The model is built from a config; nothing is downloaded.  It trains on real text in a process of its own as it is, and
in another one patched.  Losses must be the same and memory must not.  The patched model then continues a prompt, as it
would without the patch.

    python examples/transformers_causal_lm.py --family gemma2
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from common import VOCABULARY, batches, corpus, in_fresh_process, peak_memory, tokenizer

from softgrad.torch import patch_transformers, unpatch_transformers

FAMILIES = ("llama", "gpt2", "qwen2", "gemma2")
PROMPT = "The statement is"
TOLERANCE = 1e-4  # relative to the loss, of the whole curve


def build(family: str, width: int, layers: int, context: int) -> Any:
    """Return a small model of a family; its output embedding is the input's where that is the family's habit."""
    import transformers  # here, because the process that only compares needs no three seconds of it

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=context,
    )
    sizes = {"intermediate_size": 3 * width, "num_key_value_heads": 2, "head_dim": width // 4}
    for name, value in sizes.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return transformers.AutoModelForCausalLM.from_config(config)


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    model = build(arguments.family, arguments.width, arguments.layers, arguments.context).train()
    for module in model.modules():  # the same network twice: no chance in it
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if arguments.run == "patched":
        patch_transformers(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = peak_memory()
    curve = []
    start = time.perf_counter()
    for piece in batches(corpus(), arguments.steps, arguments.batch, arguments.context - 1):
        output = model(input_ids=piece, labels=piece)  # the model shifts the labels itself
        if (output.logits is None) != (arguments.run == "patched"):
            raise SystemExit("logits were made where they should not be, or the other way round")
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.append(output.loss.item())
    seconds = time.perf_counter() - start
    peak = peak_memory()
    result = {"curve": curve, "seconds": seconds / arguments.steps, "peak MB": peak, "in training": peak - before}
    if arguments.run == "patched":
        result["text"] = continued(model)
    return result


def continued(model: Any) -> str:
    """Return what the model makes of the prompt, which must not depend on the patch."""
    text = tokenizer()
    prompt = torch.tensor([text.encode(PROMPT).ids])
    settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    model.eval()
    patched = model.generate(prompt, **settings)
    if not torch.equal(patched, unpatch_transformers(model).generate(prompt, **settings)):
        raise SystemExit("the patched model generates another text")
    return text.decode(patched[0].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    parser.add_argument("--run", choices=["both", "plain", "patched"], default="both")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a few steps")
    arguments = parser.parse_args()
    sizes = ("family", "steps", "batch", "context", "width", "layers")
    if arguments.smoke:
        arguments.steps, arguments.batch, arguments.context, arguments.width, arguments.layers = 3, 8, 64, 32, 1
    if arguments.run != "both":
        print(json.dumps(train(arguments)))
        return
    options = [f"--{name}={getattr(arguments, name)}" for name in sizes]
    runs = {run: in_fresh_process(__file__, "--run", run, *options) for run in ("plain", "patched")}
    for name, run in runs.items():
        curve = run["curve"]
        memory = f"peak {run['peak MB']:.0f} MB ({run['in training']:.0f} in training)"
        print(f"{name:<8} {run['seconds']:6.2f} s/step  {memory}  loss {curve[0]:.4f} → {curve[-1]:.4f}")
    apart = max(abs(a - b) / a for a, b in zip(runs["plain"]["curve"], runs["patched"]["curve"], strict=True))
    print(f"the losses differ by {apart:.1e} of their value at most; {TOLERANCE:.0e} is allowed")
    if not apart <= TOLERANCE:
        raise SystemExit("the losses are not the same")
    print(f"generated, with and without the patch: {runs['patched']['text']!r}")


if __name__ == "__main__":
    main()
