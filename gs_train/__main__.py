"""``python -m gs_train``: the same as ``gs-train``."""

from gs_train.cli import main

if __name__ == "__main__":
    main()
