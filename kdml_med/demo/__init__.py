"""Generated cohorts with known truth: they prove that the plumbing works, never that a model is accurate.

Slides: ``phenotype`` draws what a patient's tissue is like, ``fields``, ``glands`` and ``tissue`` paint it,
``artefacts`` adds pen and blur, ``pyramid`` writes the file, ``slides`` makes the whole cohort.

Colonoscopy: ``colon`` and ``polyps`` are the anatomy, ``mucosa`` its looks, ``camera`` the tip of the endoscope;
``endoscope`` renders what it sees, ``picture`` is the video processor, ``sequences`` draws one examination,
``clips`` makes the whole cohort.

``folder`` is what both have in common on disk; ``dataset`` turns either into a dataset folder.
"""
