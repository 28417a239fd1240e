"""The data path does not depend on MindSpore."""

import subprocess
import sys


def test_the_data_path_imports_without_mindspore():
    code = "import sys, mindpangu.data, mindpangu.tokenizer; sys.exit('mindspore' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
