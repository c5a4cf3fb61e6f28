"""Tests of memscope. What checks types is imported first: modules of the package name it as they are imported."""

from tests import lazy_types as lazy_types
