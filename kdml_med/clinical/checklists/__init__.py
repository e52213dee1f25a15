"""TRIPOD+AI and STARD for one run: ``items`` is what they ask, ``facts`` what a run can say, ``sections`` the page."""
