"""The trained student as a folder that `AutoModel` opens."""
