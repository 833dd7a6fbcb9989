"""Feedback on responses: grades, preferences, revisions, repairs, and the examples on which the student is weak."""
