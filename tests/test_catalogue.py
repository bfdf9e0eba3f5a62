"""The catalogue: complete, light, and searched by words."""

import subprocess
import sys

from ontarget.catalogue import all_methods, print_methods, search


def test_every_method_can_be_loaded():
    methods = all_methods()
    assert {"tmi", "logme", "linear_probe", "lion", "randaugment", "contrastive"} <= {method.name for method in methods}
    assert len({method.module for method in methods}) == len(methods)
    for method in methods:
        assert callable(method.load())
        assert method.stage == method.room.split("/")[0]
        assert method.summary.endswith(".")
        assert method.status in ("implemented", "replicated")


def test_search_ranks_by_words():
    assert search("LogME")[0].name == "logme"
    assert search("entropy of features")[0].name == "tmi"
    assert search("few labels")[0].name == "contrastive"
    assert search("optimizer for large batches")[0].name == "lion"
    assert search("20")[0].number == 20
    assert search("zebra") == []
    assert search("") == list(all_methods())


def test_print(capsys):
    print_methods("entropy")
    assert "20 tmi  [select, implemented]" in capsys.readouterr().out
    print_methods("zebra")
    assert "No method matches 'zebra'" in capsys.readouterr().out


def test_listing_imports_nothing_heavy():
    heavy = "print([name for name in ('numpy', 'torch', 'scipy') if name in sys.modules])"
    code = f"import sys, ontarget.catalogue as catalogue; catalogue.search('x'); {heavy}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
