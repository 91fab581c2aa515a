"""``python -m sepgroupy.backends`` prints what every backend supports, as docs/backends.md holds it."""

from .features import feature_page

if __name__ == "__main__":
    print(feature_page(), end="")
