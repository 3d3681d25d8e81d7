"""Fuzzing of every parser of foreign input: ``python -m fuzz``. No part of the package.

A target (`fuzz.targets`) hands bytes to one parser and names the refusals that it may answer with;
anything else is a finding, and so is a hang, a hunger for memory, and whatever a parser has no
business with: files elsewhere, processes, sockets, code (`fuzz.guards`).
"""
