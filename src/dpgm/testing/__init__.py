"""The public contracts: run them over your own query, mechanism or method before you believe its epsilon.

Each check raises AssertionError with a sentence about what is wrong. None of them needs a test framework.
"""

from dpgm.testing.leaks import check_no_rows
from dpgm.testing.mechanisms import Law, check_mechanism, stated_law
from dpgm.testing.methods import check_method
from dpgm.testing.queries import check_query
from dpgm.testing.rows import Maker, images, vectors

__all__ = [
    "Law",
    "Maker",
    "check_mechanism",
    "check_method",
    "check_no_rows",
    "check_query",
    "images",
    "stated_law",
    "vectors",
]
