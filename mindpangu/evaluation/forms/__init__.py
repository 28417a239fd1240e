"""Forms of questions that several tasks share."""
