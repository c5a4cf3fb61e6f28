"""The section ``text``: a bank whose entries are sentences, how they are found, read and taught."""

from pydantic import Field, model_validator

from memscope.config.section import Section


class TextConfig(Section):
    """Text layers: entries are the token ids of sentences; the gate searches words, the attention reads them."""

    sentences_path: str | None = None
    """Sentences of the bank: T-REx, rows with ``sentence``, or one sentence a line. Needed by ``block: text``."""
    sentence_num: int = Field(16384, gt=1)
    """Most sentences in the bank (N), drawn by the seed from those that are short enough."""
    sentence_length: int = Field(48, gt=0, le=4096)
    """Most tokens of a sentence (L); longer sentences are left out, not cut."""
    sentences_selected: int = Field(4, gt=0)
    """Sentences that a token selects (K)."""
    candidates: int = Field(32, gt=0)
    """Sentences that share most with the text so far, by words; the gate selects among them."""
    query_words: int = Field(32, gt=0)
    """Words of the text so far that are looked for, each once."""
    slot_dim: int = Field(128, gt=0)
    """Width of a slot, that is, of one token of a sentence as the attention meets it: half the token itself, half what
    stands around it."""
    text_heads: int = Field(8, gt=0)
    """Heads of the attention that reads; divides ``dim``."""
    text_key_dim: int = Field(16, gt=0)
    """Width of the learned part of queries and keys of the gate."""
    gate_sharpness: float = Field(1.0, gt=0)
    """What totals of sentences are multiplied by before the softmax that makes gate scores of them, once trained:
    sentences that the gate doubts are then read less. Training has 1, so that gradients reach all that are selected."""
    refresh_interval: int = Field(25, gt=0)
    """Training steps between two times that the keys of all sentences are made anew."""
    facts_path: str | None = None
    """Facts with cloze templates that training makes statements of; none = statements are pieces of the bank's own
    sentences, which ask for a rare word behind them. A model without a text layer is trained on the statements of a
    file too, as a baseline: set ``object_swap=0`` then, since it cannot read."""
    statement_share: float = Field(0.5, ge=0, le=1)
    """Share of every batch's windows that hold statements; 0 = trains on the corpus alone."""
    retold_share: float = Field(0.3, ge=0, le=1)
    """Share of the statements of a file of facts that are told in the words of a sentence that states the fact, in
    place of its template."""
    object_swap: float = Field(0.5, ge=0, le=1)
    """Share of statements whose object is replaced for one step by that of another fact of the relation, alike in the
    statement and in the sentences that state it: what is learned by heart is wrong then, and reading is right."""
    alignment: float = Field(1.0, ge=0)
    """Weight of the loss that teaches the gate to score the sentences that state a fact where it is asked (the
    retrieval loss of arXiv 2004.04906 over the candidates); 0 = the language model's loss alone."""
    read_alignment: float = Field(0.1, ge=0)
    """Weight of the loss that teaches the read to fall on the answer, where a selected sentence that states the fact
    has it (supervised attention, arXiv 1609.04186); 0 = the language model's loss alone. 1 drowns that loss."""
    held_out: float = Field(0.2, ge=0, lt=1)
    """Share of subjects, by a hash of their name, whose facts are never made statements of."""
    leak_ngram: int = Field(8, ge=0)
    """A sentence that shares this many words in a row with a window of the corpus is not selected in this window: it
    may be the very text that is being predicted. 0 = all may be selected."""

    @model_validator(mode="after")
    def _check(self) -> "TextConfig":
        if self.sentences_selected > self.candidates:
            raise ValueError(
                f"sentences_selected={self.sentences_selected} exceeds candidates={self.candidates}; raise candidates"
            )
        if self.candidates > self.sentence_num:
            raise ValueError(f"candidates={self.candidates} exceeds sentence_num={self.sentence_num}; lower candidates")
        if self.slot_dim % 2:
            raise ValueError(f"slot_dim={self.slot_dim} is halved: it must be even")
        return self
