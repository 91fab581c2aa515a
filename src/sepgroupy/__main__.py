"""``python -m sepgroupy`` is the ``sepgroupy`` command."""

from .cli import main

if __name__ == "__main__":
    main()
