"""Model cards written from a checkpoint's configuration and measured results, never by hand."""
