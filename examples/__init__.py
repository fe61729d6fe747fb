"""Scripts that show the library at work; see README.md in this folder."""
