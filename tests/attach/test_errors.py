"""Messages name the public function that the user called, however deep they are raised."""

import threading

import pytest

from adapterx.errors import AdapterxError, ConfigError, speaker, speaking_as


def test_the_outermost_function_speaks():
    with speaking_as("outer"), speaking_as("inner"):
        assert speaker() == "outer"
    assert speaker() == "adapterx"


def test_an_error_ends_the_block():
    with pytest.raises(ConfigError), speaking_as("attach"):
        raise ConfigError("lost")
    assert speaker() == "adapterx"


def test_as_a_decorator_it_serves_every_call():
    @speaking_as("save_adapter")
    def work():
        return speaker()

    assert [work(), work(), speaker()] == ["save_adapter", "save_adapter", "adapterx"]


def test_threads_do_not_hear_each_other():
    heard = []
    with speaking_as("attach"):
        thread = threading.Thread(target=lambda: heard.append(speaker()))
        thread.start()
        thread.join()
    assert heard == ["adapterx"]


def test_every_error_of_ours_is_a_builtin_too():
    for kind in AdapterxError.__subclasses__():
        assert len(kind.__mro__) > 4, kind
        assert any(
            base.__module__ == "builtins" and base not in (Exception, BaseException, object) for base in kind.__mro__
        )
