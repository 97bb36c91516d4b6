"""Requests to stop: signals (`stop_request.py`), clouds' notices, and the time left for a save.

May import `environment`, `collectives` and everything below them; `training` decides what a request
leads to.
"""
