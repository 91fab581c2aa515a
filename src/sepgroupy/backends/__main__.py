"""``python -m sepgroupy.backends`` prints docs/backends.md: the features of every backend."""

from .features import feature_page

if __name__ == "__main__":
    print(feature_page(), end="")
