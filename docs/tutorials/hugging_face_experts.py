# %% [markdown]
# # A Hugging Face mixture of experts
#
# Experts of a transformers model are recorded as the model uses them. The model here is an OLMoE of two small layers
# with random weights, made from its config class, so that nothing is downloaded. Put yours in its place
# (`AutoModelForCausalLM.from_pretrained`): what it selects means something, and what this one selects does not.

# %% A model and its tokenizer
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

folder = Path("tutorial_experts")
folder.mkdir(exist_ok=True)
words = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "fish",
    "sees",
    "chases",
    "eats",
    "likes",
    "old",
    "small",
    "red",
    "blue",
    "and",
    ".",
]
vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", *words])}
backend = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
torch.manual_seed(0)
config = OlmoeConfig(
    vocab_size=len(vocabulary),
    hidden_size=32,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_experts=8,
    num_experts_per_tok=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
model = OlmoeForCausalLM(config).eval()

# %% A corpus: JSON lines with a text, and a group that tells documents apart
import random

chance = random.Random(0)
animals = {"pets": ["cat", "dog"], "wild": ["bird", "fish"]}
lines = []
for number in range(24):
    group = ["pets", "wild"][number % 2]
    pairs = [(chance.choice(animals[group]), chance.choice(["sees", "chases", "eats", "likes"])) for _ in range(6)]
    text = " ".join(f"the {chance.choice(['old', 'small'])} {animal} {verb} the {animal} ." for animal, verb in pairs)
    lines.append(json.dumps({"text": text, "group": group}))
(folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")

# %% Record: hooks only look, and the logits stay the same bit for bit
from memscope import Recording
from memscope.record.loop import record
from memscope.run.adapters.experts import HuggingFaceExperts

subject = HuggingFaceExperts(model, tokenizer, name="tiny-olmoe", cache_dir=folder / "cache")
record(subject, folder / "corpus.jsonl", folder / "recording")
recording = Recording(folder / "recording")
recording

# %% Load: how evenly the router spreads tokens over experts
recording.layer_metrics()[["layer", "selections", "coverage", "kl_to_uniform"]]

# %% Which group of documents an expert is selected for, beyond its share (1 is no difference)
from memscope.routing.domains import domain_lift

domain_lift(recording, 1).head()

# %% One text, token by token: point at a token to see its experts
from memscope.record.trace import trace_text

trace_text(subject, "the old cat chases the bird .")

# %% What is an expert worth? Without it the router's weight goes to the other one
from memscope.causal.ablation import recorded_corpus, study_ablation
from memscope.causal.effects import entry_usage

usage = entry_usage(folder / "recording")
most_used = int(usage.argmax())
study = study_ablation(subject, recorded_corpus(recording), [most_used], usage, controls=1)
print(recording.info.label(most_used))
study.table
