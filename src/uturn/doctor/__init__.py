"""The doctor: named checks of what makes robustness claims wrong without anybody noticing.

A check looks at its patient (`uturn.doctor.victim`: a victim and pictures) and returns a
`Finding`. Every check's name, cause, remedy and way of measuring is in ``docs/doctor.md``.
"""
