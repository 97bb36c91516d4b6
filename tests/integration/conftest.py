import sys
from pathlib import Path

# The integration tests share helper modules that stand beside them.
sys.path.insert(0, str(Path(__file__).parent))
