"""Programs that turn raw slides, tiles and tables into dataset folders; run as ``python -m preprocessing.<name>``."""
