"""The format of a recording on disk: names, parts, rows, checks. ``record`` makes it, ``query`` asks it."""
