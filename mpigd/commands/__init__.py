"""The command line: a parser, and a module or function per command."""
