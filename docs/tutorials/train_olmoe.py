"""Train a small mixture of experts of the transformers library for minutes, to have one to record.

    python docs/tutorials/train_olmoe.py configs/olmoe_small.json --corpus data/wiki/train.jsonl --out runs/olmoe
    memscope record runs/olmoe --corpus data/wiki/valid.jsonl --out recordings/olmoe

The model is ``OlmoeForCausalLM`` (OLMoE, arXiv 2409.02060) with its own loss, which includes the loss that balances
experts. AdamW, linear warm-up, then a cosine to a tenth. The folder is that of ``save_pretrained`` with the tokenizer,
whose post-processor puts bos before and eos after every document, as in training.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import tokenizers
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from memscope.text.corpus import TrainingOrder, pack_corpus, read_documents
from memscope.text.tokenizer import Tokenizer

WARMUP = 0.05
"""Share of the steps that the learning rate rises in."""


def main() -> None:
    """Parse, train, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="config.json of an OlmoeForCausalLM")
    parser.add_argument("--corpus", type=Path, required=True, help='JSON lines with "text"')
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json; by default one of 6,400 tokens is trained")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=8, help="windows a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    tokenizer = _tokenizer(asked.tokenizer, asked.corpus)
    corpus = pack_corpus(asked.corpus, tokenizer, Path("data/cache"))
    torch.manual_seed(asked.seed)
    settings: dict[str, Any] = json.loads(asked.config.read_text(encoding="utf-8"))
    settings |= {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    model = OlmoeForCausalLM(OlmoeConfig(**settings, vocab_size=tokenizer.vocab_size))
    order = TrainingOrder(corpus, model.config.max_position_embeddings, asked.seed)
    train(model, order, asked.steps, asked.batch, asked.learning_rate)
    model.save_pretrained(asked.out)
    tokenizer.save(asked.out / "tokenizer.json")
    print(f"saved {asked.out}")


def train(model: OlmoeForCausalLM, order: TrainingOrder, steps: int, batch: int, learning_rate: float) -> None:
    """Train on the windows of a corpus; prints the mean loss of the last steps now and then, in nats per token."""
    fast = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rise = max(1, int(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        fast,
        [
            torch.optim.lr_scheduler.LinearLR(fast, 1 / rise, total_iters=rise),
            torch.optim.lr_scheduler.CosineAnnealingLR(fast, max(1, steps - rise), learning_rate / 10),
        ],
        [rise],
    )
    started, losses, balance = time.perf_counter(), [], []
    model.train()
    for step in range(1, steps + 1):
        windows = torch.from_numpy(order.batch((step - 1) * batch, batch))[:, : order.window]
        done = model(input_ids=windows, labels=windows, output_router_logits=True, use_cache=False)
        done.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        fast.step()
        schedule.step()
        fast.zero_grad()
        extra = model.router_aux_loss_coef * float(done.aux_loss.detach())
        losses.append(float(done.loss.detach()) - extra)
        balance.append(float(done.aux_loss.detach()))
        if step % max(1, steps // 20) == 0 or step == steps:
            speed = step * batch * order.window / (time.perf_counter() - started)
            last = slice(-max(1, steps // 20), None)
            means = [sum(values[last]) / len(values[last]) for values in (losses, balance)]
            print(f"step {step}  loss {means[0]:.4f}  balance {means[1]:.3f}  {speed:,.0f} tokens/s", flush=True)


def _tokenizer(path: Path | None, corpus: Path) -> Tokenizer:
    """The tokenizer of a file, or one trained on the corpus; bos and eos stand around every document."""
    if path is not None:
        tokenizer = Tokenizer.adopt(path)
    else:
        tokenizer = Tokenizer.train((document.text for document in read_documents(corpus)), vocab_size=6400)
    bos, eos = tokenizer.roles.bos or tokenizer.roles.eos, tokenizer.roles.eos or tokenizer.roles.bos
    tokenizer.backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(str(bos), tokenizer.bos), (str(eos), tokenizer.eos)]
    )
    return tokenizer


if __name__ == "__main__":
    main()
