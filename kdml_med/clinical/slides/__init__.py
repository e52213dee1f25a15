"""The report of a run of classifiers: from its answers about slides or patients to sections of the page.

``findings`` collects all figures, with ``counting``, ``judging`` and ``subgroups``; ``sections``, ``flow``,
``thresholds`` and ``patients`` write about them.
"""
