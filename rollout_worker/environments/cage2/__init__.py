"""CAGE Challenge 2 (CybORG 2.1, Scenario2) as one compiled simulator of many environments.

Importing this package does not import numba; its modules that compile do.
"""
