"""Readers of files that are no table: functions `(path) -> Iterator[Mapping]`, named in a yaml's `reader`.

A reader yields one mapping for each example, in the order of the file, and draws nothing at random. Where questions and
their answers lie in two members of an archive, its path is that of the archive, and it reads the members itself.
"""
