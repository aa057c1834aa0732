"""`python -m adapterx.cli`, which is what torchrun starts on several devices."""

from adapterx.cli import main

main()
