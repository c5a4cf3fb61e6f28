"""The recorded model at work for readers, in a process of its own: torch is never loaded beside the pages."""
