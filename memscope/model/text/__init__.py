"""The text layer: slots made of sentences' tokens, the gate that finds sentences, the read; searching is elsewhere."""
