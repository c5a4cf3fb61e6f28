"""Tools that every room uses: errors, files, locks, hashes, Parquet, processes. They know no model and no memory."""
