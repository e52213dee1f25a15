"""Programs that turn raw slides, tiles and tables into dataset folders: ``python -m preprocessing.<name>``.

The code is in ``kdml_med.programs``; what is here keeps these commands working from the repository.
"""
