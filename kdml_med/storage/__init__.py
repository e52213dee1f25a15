"""What is on disk: files, shards, the manifest, and the dataset folder that holds them."""
