"""The import paths of the published code: a few names bound to :mod:`sepgroupy.nn`."""
