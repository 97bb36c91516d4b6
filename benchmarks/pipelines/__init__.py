"""The parts of `input_pipeline.py`: one module a part, and what they share."""
