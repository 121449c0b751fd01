"""From audio files to shards, and from shards to batches."""
