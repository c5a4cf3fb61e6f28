"""What every room stands on: errors, files, locks, hashes, Parquet, processes. Nothing here knows of models or memories."""
