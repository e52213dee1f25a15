"""What predictions look like: maps of slides, sheets of tiles, and where a network looks."""
