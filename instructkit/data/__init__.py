"""Examples and what they refer to: Parquet and manifest, readers of releases, media, mixture."""
