"""Run ``python -m proxy`` as ``cmail-proxy``."""

from proxy.cli import main

if __name__ == "__main__":
    main()
