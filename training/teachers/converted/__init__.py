"""Teachers whose weights come in other formats, read without their runtimes."""
