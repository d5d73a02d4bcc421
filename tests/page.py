"""The code of docs/extending.md as a module: its flow goes through every truth of the registry."""

import re
import sys
from pathlib import Path
from types import ModuleType

PATH = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PATH.read_text(encoding="utf-8"), re.M | re.S)

module = ModuleType("sinh_arcsinh")
sys.modules[module.__name__] = module  # where pickles of its transforms are looked for
exec(compile(BLOCKS[0], str(PATH), "exec"), module.__dict__)

flow = module.SinhArcsinhFlow
