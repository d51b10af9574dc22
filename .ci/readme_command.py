"""Print the n-th shell command of a README: the n-th block that is marked as ``sh``."""

import re
import sys
from pathlib import Path

text = Path(sys.argv[1]).read_text(encoding="utf-8")
blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
print(blocks[int(sys.argv[2]) - 1].strip())
