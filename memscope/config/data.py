"""The section ``data``: where text comes from."""

from pydantic import model_validator

from memscope.config.section import Section


class DataConfig(Section):
    """Where text comes from."""

    train_path: str = ""
    """Training corpus: JSON lines, a JSON list or Parquet with a ``text`` field; also gz, zst, xz, bz2."""
    valid_path: str = ""
    """Validation corpus in the same format; never trained on."""
    tokenizer_path: str | None = None
    """A ``tokenizer.json``; none trains a byte-level BPE of ``vocab_size`` entries on the training corpus."""
    bos_token: str | None = None
    """Token of that tokenizer that opens documents. None takes the one that ``tokenizer_config.json`` or
    ``special_tokens_map.json`` beside it names, or else a well-known name (``<s>``, ``<bos>``, ``[CLS]`` ...); empty
    says that there is none: then the end token opens documents too, as in GPT-2. The run keeps what it took."""
    eos_token: str | None = None
    """Token that ends documents, found likewise; without one ``bos_token`` ends them too."""
    pad_token: str | None = None
    """Token that fills up what nothing reads, and slots past the end of a sentence, found likewise; without one it is
    that which ends documents."""
    cache_dir: str = ".cache/memscope"
    """Folder for packed corpora, named by content."""

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        named = next((key for key in ("bos_token", "eos_token", "pad_token") if getattr(self, key) is not None), None)
        if named and not self.tokenizer_path:
            raise ValueError(f"{named} names a token of tokenizer_path, which is empty; set it, or drop {named}")
        return self
