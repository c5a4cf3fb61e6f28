"""The format of a recording on disk: names, parts, rows, checks. ``record`` makes recordings, ``query`` asks them. No torch."""
