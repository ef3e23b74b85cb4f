"""``python -m gs_train`` runs the command ``gs-train``."""

from gs_train.cli import main

if __name__ == "__main__":
    main()
