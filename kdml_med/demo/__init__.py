"""Generated cohorts with known truth: they prove that the plumbing works, never that a model is accurate.

``phenotype`` draws what a patient's tissue is like, ``fields``, ``glands`` and ``tissue`` paint it, ``artefacts`` adds
pen and blur, ``pyramid`` writes the file, ``slides`` makes the whole cohort.
"""
