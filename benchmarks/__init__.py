"""How fast this is, against whom: `python -m benchmarks --help`. See README.md beside this file."""
