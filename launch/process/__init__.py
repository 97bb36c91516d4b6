"""What every launcher process needs: its terminal, its signals, its liveness file.

May import nothing else of `launch`.
"""
