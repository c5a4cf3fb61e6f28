"""Questions that studies of routing ask: load, domains, vocabulary, pairs, paths, saturation, atlas. No torch."""
