"""Models that memscope trains, as subjects: every memory layer and every text layer is a site.

with capture_memory(model) as captured:
    model(tokens)
captured[layer].indices      # [batch, pos, K]
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memscope.base.runtime import autocast
from memscope.config.load import Config
from memscope.model.transformer import MemoryTransformer
from memscope.recording.info import COPIES
from memscope.recording.sites import Has, Site, describe_sites
from memscope.run.bank_init import PARQUET, TENSORS, load_bank_init
from memscope.run.checkpoint import LoadedRun
from memscope.run.provenance import all_starts, start_entries, start_table
from memscope.run.subject import Batches, Drifted, Edit, Selected
from memscope.text.tokenizer import Tokenizer

_NOTED = ("indices", "gate_scores", "margin")
_DETAIL = ("score_margin", "by_score")
_HAS_WITHOUT_STARTS: tuple[Has, ...] = ("scores", "reads", "margin", "lens")


@contextmanager
def capture_memory(
    model: MemoryTransformer, keep_pattern: bool = True, detail: bool = False
) -> Iterator[dict[int, Selected]]:
    """Capture every memory and text layer; the yielded dict (layer -> capture) is filled by each forward pass.

    Args:
        model: the model.
        keep_pattern: keep read weights per read head, by far the largest tensor.
        detail: also compare the selection with that of raw scores, and keep read weights without their signs.

    Example:
        >>> with capture_memory(run.model) as captured:
        ...     run.model(run.tokens("Apollo was the god of"))
        >>> captured[0].indices[0, -1]  # the entries that the last token selects in layer 0
    """
    captured: dict[int, Selected] = {}
    latest: dict[str, Tensor] = {}

    def note(tensor: Tensor, hook: object) -> None:
        latest[getattr(hook, "name", "")] = tensor.detach()

    def finish(pattern: Tensor, hook: object) -> None:  # the last hook of a memory layer to fire
        prefix, _, _ = getattr(hook, "name", "").rpartition(".")
        of_memory = prefix.endswith(".memory")
        noted = _NOTED + _DETAIL if detail and of_memory else _NOTED
        indices, scores, margin, *compared = (latest.pop(f"{prefix}.hook_{name}") for name in noted)
        pattern = pattern.detach()
        slots = pattern.float().mean(2).unflatten(-1, (indices.shape[-1], -1))
        capture = Selected(indices, scores.float(), margin, slots, pattern if keep_pattern else None)
        if detail and of_memory:
            capture.score_margin, capture.by_score = compared
            capture.read_norms = capture.read_weights
            if model.cfg.memory.read_fn == "gelu":  # weights have signs
                norms = torch.linalg.vector_norm(pattern, 1, dim=2, dtype=torch.float32) / pattern.shape[2]
                capture.read_norms = norms.unflatten(-1, (indices.shape[-1], -1)).sum(-1)
        captured[int(prefix.split(".")[1])] = capture

    hooks: list[tuple[str, Callable[[Tensor, object], None]]] = []
    for layer in model.cfg.model.memory_layers:
        prefix = f"blocks.{layer}.memory"
        hooks += [(f"{prefix}.hook_{name}", note) for name in (_NOTED + _DETAIL if detail else _NOTED)]
        hooks += [(f"{prefix}.hook_pattern", finish)]
    for layer in model.cfg.model.text_layers:
        hooks += [(f"blocks.{layer}.text.hook_{name}", note) for name in _NOTED]
        hooks += [(f"blocks.{layer}.text.hook_pattern", finish)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        yield captured


class OwnModel:
    """A model that memscope trains, to run over text; a feed-forward baseline has no site.

    Args:
        model: the model.
        dtype: ``float32``, or ``bfloat16`` for mixed precision.
    """

    def __init__(self, model: MemoryTransformer, dtype: str = "float32"):
        self.model, self.dtype = model, dtype

    def capture(
        self, keep_pattern: bool = False, detail: bool = False
    ) -> AbstractContextManager[Mapping[int, Selected]]:
        """``capture_memory``."""
        return capture_memory(self.model, keep_pattern, detail)

    def logits(
        self, tokens: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos vocab"]:
        """Next-token logits; attention is causal, so what fills up a batch on the right changes nothing."""
        with autocast(tokens.device, self.dtype):
            logits: Tensor = self.model(tokens)
        return logits


class OwnRun(OwnModel):
    """A run of memscope as a subject.

    Args:
        run: a run whose model has memory layers.
        dtype: precision of the forward pass; none takes the run's.

    Example:
        >>> subject = OwnRun(load_run("runs/demo"))
        >>> with subject.capture() as captured:
        ...     subject.logits(run.tokens("Apollo was the god of"))
    """

    def __init__(self, run: LoadedRun, dtype: str | None = None):
        super().__init__(run.model, dtype or run.config.train.dtype)
        self.run = run

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}: {describe_sites(self.sites)})"

    @property
    def name(self) -> str:
        """The run folder."""
        return str(self.run.path.resolve())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model file, and of the sentences that it reads."""
        return self.run.fingerprint

    @property
    def step(self) -> int | None:
        """Training step, where the model was read from a checkpoint."""
        return self.run.step

    @property
    def sites(self) -> tuple[Site, ...]:
        """The memory and text layers; of an imported run it is not known what its entries started from."""
        memories = memory_sites(self.run.config)
        if not self._knows_starts:
            memories = tuple(site.model_copy(update={"has": _HAS_WITHOUT_STARTS}) for site in memories)
        bank = self.model.text_bank
        texts = () if bank is None else text_sites(self.run.config, len(bank), bank.ids.shape[1])
        return tuple(sorted((*memories, *texts), key=lambda site: site.layer))

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return self.run.tokenizer

    @property
    def window(self) -> int:
        """``max_seq_len``."""
        return self.run.config.model.max_seq_len

    @property
    def cache_dir(self) -> Path:
        """The run's ``data.cache_dir``."""
        return Path(self.run.config.data.cache_dir)

    @property
    def copies(self) -> Mapping[str, Path]:
        """Tokenizer, config, summary and metrics."""
        names = ("tokenizer.json", *COPIES)
        return {name: self.run.path / name for name in names if (self.run.path / name).is_file()}

    @property
    def _knows_starts(self) -> bool:
        return (self.run.path / PARQUET).is_file() or (self.run.path / TENSORS).is_file()

    def starts(self) -> pa.Table | None:
        """The starts of the loaded model's entries; of a text layer they are its sentences."""
        if self.model.text_bank is not None:
            return all_starts(self.run, self._knows_starts)
        return start_table(self.run) if self._knows_starts else None

    def drifted(self) -> Drifted | None:
        """Entries now and at their start, in the space of the run's table and projection."""
        if not self._knows_starts:
            return None
        assert self.model.bank is not None
        init = load_bank_init(self.run.path)
        return Drifted(
            now=self.model.bank.entries.detach().float().cpu(),
            before=torch.from_numpy(start_entries(self.run)),
            space=torch.from_numpy(init.table @ init.projection),
            token_ids=start_table(self.run, ["token_ids"])["token_ids"].to_pylist(),
        )

    def values(self, layer: int, entries: Int[Tensor, " row"], sample: Batches = ()) -> Float[Tensor, "row dim"]:
        """``W_O W_V`` of entries, all read heads alike, mean over slots, without the output gate."""
        if layer in self.model.cfg.model.text_layers:
            assert self.model.text_bank is not None
            return self.model.text_layer(layer).values(self.model.text_bank, entries, self.model.embed.weight)
        assert self.model.bank is not None
        return self.model.bank.entries[entries].mean(1) @ self.model.memory_layer(layer).read.write_matrix.T

    def unembed(self, resid: Float[Tensor, "row dim"]) -> Float[Tensor, "row vocab"]:
        """Final norm and tied unembedding."""
        return self.model.unembed(resid)

    @contextmanager
    def rewrite(self, edit: Edit) -> Iterator[None]:
        """Change indices and gate scores of every memory and text layer; -1 becomes a selection of score 0."""
        edited: dict[int, tuple[Tensor, Tensor | None]] = {}
        Act = Callable[[Tensor, object], Tensor | None]

        def note(layer: int, indices: Tensor, scores: Tensor) -> None:
            changed = edit(layer, indices, scores)
            if changed[0] is indices and changed[1] is scores:  # then what other blocks do to this layer stays
                edited.pop(layer, None)
            else:
                edited[layer] = changed

        def ask(layer: int) -> Act:  # the hook of indices runs before that of scores
            def act(query: Tensor, hook: object) -> None:
                selection = self.model.memory_layer(layer).gate.select(query)
                note(layer, selection.indices, selection.scores)

            return act

        def ask_text(layer: int) -> Act:
            text = self.model.text_layer(layer)

            def act(margin: Tensor, hook: object) -> None:
                note(layer, *text.selection)
                if layer in edited:  # a block inside this one goes on from here
                    indices, scores = edited[layer]
                    text.selection = (indices, text.selection[1] if scores is None else scores)

            return act

        def put_indices(layer: int) -> Act:
            first = self.model.memory_layer(layer).gate.first
            return lambda indices, hook: edited[layer][0].clamp(min=first) if layer in edited else None

        def put_sentences(layer: int) -> Act:
            return lambda indices, hook: edited[layer][0] if layer in edited else None

        def put_scores(layer: int) -> Act:
            def act(scores: Tensor, hook: object) -> Tensor | None:
                if layer not in edited:
                    return None
                indices, new = edited[layer]
                return (scores if new is None else new).masked_fill(indices < 0, 0.0).to(scores)

            return act

        of_memory = {"query": ask, "indices": put_indices, "gate_scores": put_scores}
        of_text = {"margin": ask_text, "indices": put_sentences, "gate_scores": put_scores}
        hooks = [
            (f"{site.module}.hook_{name}", make(site.layer))
            for site in self.sites
            for name, make in (of_text if site.kind == "text" else of_memory).items()
        ]
        with self.model.hooks(fwd_hooks=hooks):
            yield


def memory_sites(config: Config) -> tuple[Site, ...]:
    """The memory layers of a config as sites."""
    memory, signed = config.memory, config.memory.read_fn == "gelu"
    sites = []
    for layer in config.model.memory_layers:
        own = config.entries_of(layer)
        site = Site(
            layer=layer,
            module=f"blocks.{layer}.memory",
            kind="memory",
            first_entry=own.start,
            entries=own.stop - own.start,
            selected=memory.selected,
            gate_heads=memory.gate_heads,
            read_heads=config.read_heads,
            slots=memory.knowledge_length,
            has=("scores", "reads", "margin", "starts", "lens", "drift"),
            selection_bias=memory.balance_bias > 0,
            signed_reads=signed,
        )
        sites.append(site)
    return tuple(sites)


def text_sites(config: Config, sentences: int, length: int) -> tuple[Site, ...]:
    """The text layers of a config as sites; sentences count on after the entries of the memory.

    Args:
        config: the run's.
        sentences: in its bank.
        length: most tokens of one.
    """
    return tuple(
        Site(
            layer=layer,
            module=f"blocks.{layer}.text",
            kind="text",
            first_entry=config.first_sentence,
            entries=sentences,
            selected=config.text.sentences_selected,
            varies=True,
            read_heads=config.text.text_heads,
            slots=length,
            has=("scores", "reads", "margin", "starts", "lens"),
        )
        for layer in config.model.text_layers
    )
