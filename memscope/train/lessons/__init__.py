"""What a text layer is taught beside the corpus: statements of facts, swapped objects, sentences that must not leak."""
