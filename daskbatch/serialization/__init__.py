"""Pickles functions, arguments, results and exceptions.

Knows neither tasks nor workers nor Dask. This file imports nothing, so that a child process starts
quickly.
"""
