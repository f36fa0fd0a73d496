"""The rules that turn a trace of a run into findings, one kind of fault a file."""
