"""The report of one run: what reviewers of a study ask for, on one page that needs nothing else.

``writing`` is where to begin: it reads the run (``study``, ``answers``), takes what was chosen on validation
(``rules``), has ``slides`` or ``polyps`` write their sections, and adds those that both have (``training``,
``provenance``, ``checklists``).
"""
