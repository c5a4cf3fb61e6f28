"""What every room stands on: errors, files, locks, hashes, Parquet, processes. It knows no model and no memory."""
