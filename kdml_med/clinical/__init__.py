"""The report of one run: what reviewers of a study ask for, on one page that needs nothing else."""
