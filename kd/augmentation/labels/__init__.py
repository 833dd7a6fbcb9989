"""Labels that the teacher generates to another prompt than the student's, in another form, or as a second task."""
