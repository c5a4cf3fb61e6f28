"""HTML that notebooks show in place of a repr, of values that callers give; no file is read or written."""
