"""The student: built, warm-started, regularized, averaged, exported."""
