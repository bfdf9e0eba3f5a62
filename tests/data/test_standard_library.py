import argparse

from ontarget.data.standard_library import docstring_texts


def test_each_module_is_one_text() -> None:
    texts = docstring_texts()
    assert len(texts) > 50 and all(len(text) > 500 for text in texts)
    (own,) = [text for text in texts if "Command-line parsing library" in text]
    assert argparse.ArgumentParser.__doc__ is not None
    assert own.startswith("Command-line parsing library") and "Object for parsing command line strings" in own


def test_packages_and_length() -> None:
    more = docstring_texts(packages=True, least=2048)
    assert all(len(text) > 2048 for text in more)
    assert len(more) > len([text for text in docstring_texts() if len(text) > 2048])
