"""The command line: the thinnest user of the library."""
