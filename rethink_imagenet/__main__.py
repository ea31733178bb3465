"""`python -m rethink_imagenet compare` is `rethink_compare`."""

from .tools.cli import main

main()
