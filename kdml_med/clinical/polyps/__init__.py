"""The report of a run of detectors: ``detections`` reads and judges, ``sections`` writes, with ``flow``, ``tables`` and
``pictures``.
"""
