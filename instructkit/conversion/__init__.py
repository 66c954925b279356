"""Raw releases become examples: workers, shards, rejects, manifests."""
