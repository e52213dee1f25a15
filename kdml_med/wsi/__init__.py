"""Whole slides to tiles: reading, geometry, tissue, quality, stain and shards."""
