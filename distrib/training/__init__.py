"""What happens around Keras's `fit`: resuming, saving, and synchronizing ranks.

`resumable_fit.py` follows a `fit` and saves it; `multi_rank_fit.py` makes ranks share one.
May import everything below it in `distrib`; `callbacks`, `runtime` and `retention` are above.
"""
