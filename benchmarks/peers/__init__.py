"""Other trainers of the same student from the same teacher, each a program that runs steps when asked."""
