"""Starting Java: late, once, with the signals left alone, and by name if something is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from lexvla.errors import EngineUnavailableError, IndexMissingError, OptionalDependencyError
from lexvla_indexer import open_index
from lexvla_indexer.jdk import find_jdk
from lexvla_indexer.lucene import jvm
from source_tree import PYTHONPATH


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(jvm, "_started_by", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'lexvla\[pyserini\]'"):
        open_index(f"lucene:{tmp_path}", create=True)


def test_no_java_is_started_where_there_is_no_index():
    code = """
import sys
from lexvla_indexer import open_index
from lexvla.errors import IndexMissingError
try:
    open_index("lucene:nowhere")
except IndexMissingError:
    print("jnius" in sys.modules)
"""
    assert run(code).stdout == "False\n"
    with pytest.raises(IndexMissingError):
        open_index("lucene:nowhere")


@pytest.mark.java
def test_without_a_java_the_error_says_what_to_do(monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)  # the error would name it
    code = """
from lexvla_indexer import jdk
from lexvla_indexer.lucene.jvm import start_java
jdk.find_jdk.__globals__["java_home"] = lambda: None
jdk.find_jdk.__globals__["installed_jdks"] = list
start_java()
"""
    assert "EngineUnavailableError: no Java 21 or newer here; install a JDK" in run(code).stderr


@pytest.mark.java
def test_a_java_without_the_classes_is_named():
    code = """
import os
from lexvla_indexer.jdk import find_jdk
from lexvla_indexer.lucene.jvm import start_java
jdk = find_jdk()
os.environ |= {"JAVA_HOME": str(jdk.home), "JVM_PATH": str(jdk.library)}
import jnius
start_java()
"""
    error = run(code).stderr
    assert "Java runs in this process already, without the classes of Anserini" in error


@pytest.mark.java
def test_java_leaves_no_socket_for_a_later_process_of_its_number():
    code = """
import os
from lexvla_indexer.lucene.jvm import start_java
start_java()
print(os.path.exists(f"/tmp/.java_pid{os.getpid()}"))
"""
    assert run(code).stdout == "False\n"


@pytest.mark.java
def test_a_forked_process_is_refused(tmp_path):
    jvm.start_java()
    child = os.fork()
    if not child:
        try:
            jvm.start_java()
        except EngineUnavailableError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    open_index(f"lucene:{tmp_path / 'i'}", create=True).close()  # nothing happened to the parent


@pytest.mark.java
def test_signals_environment_and_output_stay_as_they_were(tmp_path):
    code = """
import os, signal, sys
from lexvla_indexer import open_index
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
before = dict(os.environ)
open_index(f"lucene:{sys.argv[1]}", create=True).close()
assert os.environ == before
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""
    before = signal.getsignal(signal.SIGINT)
    done = run(code, str(tmp_path / "i"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
    assert signal.getsignal(signal.SIGINT) is before
    assert find_jdk().is_suitable
