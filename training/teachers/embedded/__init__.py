"""Small pretrained teachers that ship inside packages."""
