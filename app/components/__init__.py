"""The app's components, one per file: a page passes data, and scripts in ``frontend`` draw it."""
