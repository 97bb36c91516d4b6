"""`distrib k8s`: renders the manifests of a job, and lints any manifests.

`settings.py` checks what a job needs, `objects.py` makes Kubernetes objects of it, `lint_rules.py`
finds faults in objects, and `pre_stop.py` runs in a pod that Kubernetes stops.
May import `hosts`, `process`, `arguments` and `tables`; not `run`.
"""
