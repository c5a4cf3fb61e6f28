"""A small language model whose layers tests choose, a tokenizer and a text for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from memscope.testing.recordings import word_texts, write_tokenizer
from memscope.text.corpus import DocumentWindow, PackedCorpus, document_windows
from memscope.text.tokenizer import Tokenizer

VOCAB, DIM, WINDOW = 40, 16, 12


class Small(nn.Module):
    """Embedding, a mean over the tokens so far, one residual layer after the other, unembedding."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        for layer in self.layers:
            x = x + layer(x)
        return self.unembed(x)

    def unembed(self, resid: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(resid))
        return logits


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def small_tokenizer(folder: Path) -> Tokenizer:
    write_tokenizer(folder / "tokenizer.json", word_texts(VOCAB))
    return Tokenizer.load(folder / "tokenizer.json")


def small_corpus() -> tuple[PackedCorpus, list[DocumentWindow]]:
    """Three documents of random tokens, longer than a window, and their windows."""
    tokens = np.random.default_rng(0).integers(3, VOCAB, 60).astype(np.uint16)
    corpus = PackedCorpus(tokens, np.array([0, 17, 40, 60]), ["a", "b", "c"], path="text", sha256="0" * 64)
    return corpus, document_windows(corpus, WINDOW)
