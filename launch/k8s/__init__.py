"""`distrib k8s`: renders the manifests of a job, and lints anybody's.

`settings.py` and `objects.py` make them; `lint_rules.py` checks them; `pre_stop.py` runs in a pod.
May import `hosts` and `process`; not `run`.
"""
