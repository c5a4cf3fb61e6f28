# %% [markdown]
# # From text to a picture
#
# Ten cells: you write a small text, train a memory model on it, record what it selects, and draw how evenly. All of it
# takes seconds on a CPU. Run the cells in Jupyter, VS Code or Colab, or the file as a script.

# %% A small world: people, towns and what they do
import json
import random
from pathlib import Path

folder = Path("tutorial")
folder.mkdir(exist_ok=True)
chance = random.Random(0)
people = ["Ada Holm", "Bo Lind", "Cora Wells", "Dan Frost", "Eva Stone", "Finn Hale", "Gus Reed", "Ida Moss"]
towns, work = ["Aston", "Berrow", "Calder", "Dunmore"], ["painter", "engineer", "physician", "composer"]
home = {person: chance.choice(towns) for person in people}


def sentence() -> str:
    """One of two things to say of a person: where born, which is a fact, or at work, which is drawn anew."""
    person = chance.choice(people)
    return chance.choice([f"{person} was born in {home[person]} .", f"{person} is a {chance.choice(work)} ."])


# %% Text to train on, text to record, and sentences that entries start from
for name, documents in (("train", 60), ("valid", 8)):
    lines = [json.dumps({"text": " ".join(sentence() for _ in range(12))}) for _ in range(documents)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
said = sorted({sentence() for _ in range(500)})
(folder / "sentences.txt").write_text("\n".join(said) + "\n")

# %% A model: two layers, a bank of 36 entries that start as sentences, of which a token selects 4 in each layer
from memscope.config.load import validate_config

config = validate_config(
    {
        "model": {"vocab_size": 300, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 64},
        "memory": {"knowledge_num": 36, "knowledge_dim": 16, "num_selected": 4, "gate": "product"}
        | {"database_init_path": str(folder / "sentences.txt")},
        "data": {"train_path": str(folder / "train.jsonl"), "valid_path": str(folder / "valid.jsonl")}
        | {"cache_dir": str(folder / "cache")},
        "train": {"steps": 60, "batch_size": 8, "learning_rate": 5e-3, "warmup_iters": 5, "eval_interval": 20}
        | {"save_interval": 60, "tracker": "none", "dtype": "float32"},
    },
    source="this notebook",
)

# %% Train it
from memscope.train.loop import train

summary = train(config, folder / "run", device="cpu")
print(f"{summary['parameters']:,} parameters, validation loss {summary['valid_loss']:.2f} nats per token")

# %% Load the run; ask it for the tokens of a text
from memscope import load_run

run = load_run(folder / "run")
run.tokens("Ada Holm was born in")

# %% Record which entries every token of the other text selects
from memscope.record.loop import record
from memscope.run.adapters.own import OwnRun

record(OwnRun(run), folder / "valid.jsonl", folder / "recording")

# %% A recording answers in DataFrames; in a notebook it shows itself
from memscope import Recording

recording = Recording(folder / "recording")
recording

# %% The most used entry: what it started as, where it is used, what it makes likely
most_used = int(recording.entries(sort="count", limit=1)["entry"][0])
recording.entry(most_used)

# %% A text, coloured by loss; point at a token to see its entries
from memscope.record.trace import trace_text

trace_text(OwnRun(run), f"Ada Holm was born in {home['Ada Holm']} .")

# %% The picture: how far from even the gate selects (the diagonal is even selection)
from memscope.report.plots.usage import lorenz_curve

figure = lorenz_curve(recording.reachable_usage(), recording.info.layers)
figure.savefig(folder / "lorenz.png")
figure
