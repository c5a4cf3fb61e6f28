# %% [markdown]
# # Which entries carry a prediction
#
# Attribution says which of the selected entries raised a token; an intervention shows if it is so. The model here is
# built by hand (`memscope.testing`), so that the answer is known: one entry, the *detector*, is selected exactly at one
# token, and raises the token that follows it. You find it as you would in a trained run.

# %% A run whose answer is known
from pathlib import Path

from memscope.testing.models import plant_run

planted = plant_run(Path("tutorial_planted"), seed=0)
[(detector, trigger)] = [(entry, token) for entry, token in planted.truth.detectors.items()][:1]
planted

# %% Some of its text, and the next token of every position
import torch

from memscope import load_run
from memscope.text.corpus import read_documents

run = load_run(planted.run)
texts = [document.text for document in read_documents(planted.corpus)][:8]
rows = [run.tokens(text)[0, :48] for text in texts]
tokens = torch.stack([row for row in rows if len(row) == 48])
targets = torch.cat([tokens[:, 1:], torch.full((len(tokens), 1), -100)], dim=1)

# %% Attribute: how much every selected entry adds to the logit of the token that follows
from memscope.causal.attribution import attribute

found = attribute(run.model, tokens, targets)
found.agreement  # how well attributions agree with true ablations; look at this first

# %% Where the pushed token follows the trigger, which entries raise it most?
import pandas as pd

layer = run.config.model.memory_layers[-1]
at = (tokens == trigger) & (targets == planted.pushed)
table = pd.DataFrame(
    {
        "entry": found.indices[layer][at].flatten().tolist(),
        "added": found.direct[layer][at].flatten().tolist(),
    }
)
raised = table.groupby("entry")["added"].agg(["mean", "size"]).sort_values("mean", ascending=False)
raised.head()

# %% The first one is the detector
suspect = int(raised.index[0])
print(f"attribution names entry {suspect}; the planted one is {detector}")

# %% Is it so? Take it out, and another selected entry in its place as a control
from memscope.causal.intervene import ablate


def logit(entries: list[int]) -> float:
    """Mean logit of the pushed token at these positions without some entries."""
    with torch.no_grad(), ablate(run.model, entries, "zero"):
        return float(run.model(tokens)[at][:, planted.pushed].mean())


with torch.no_grad():
    before = float(run.model(tokens)[at][:, planted.pushed].mean())
control = int(raised.index[len(raised) // 2])
effect, control_effect = before - logit([suspect]), before - logit([control])
print(f"without entry {suspect}: {-effect:+.3f}; without entry {control}, a control: {-control_effect:+.3f}")

# %% [markdown]
# An ablation always changes something, so an effect says little without a control. `memscope ablate` draws controls of
# equal usage and gives intervals over documents; [the page on interventions](../explanation/causal.md) says how.

# %% The same for a whole text, with controls and intervals
from memscope.causal.ablation import recorded_corpus, study_ablation
from memscope.causal.effects import entry_usage
from memscope.query.recording import Recording
from memscope.record.loop import record
from memscope.run.adapters.own import OwnRun

recording = Path("tutorial_planted/recording")
record(OwnRun(run), planted.corpus, recording)
study = study_ablation(
    OwnRun(run), recorded_corpus(Recording(recording)), [suspect], entry_usage(recording), tokens=4000
)
study.table
