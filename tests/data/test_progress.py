import io
import sys

from cleft.data.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def walk(monkeypatch, stream, *, enabled):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("prepare images", 3, enabled=enabled) as advance:
        for _ in range(3):
            advance()
    return stream.getvalue()


def test_a_terminal_shows_progress_and_rate(monkeypatch):
    shown = walk(monkeypatch, Terminal(), enabled=True)
    assert "prepare images" in shown
    assert "3/3" in shown


def test_a_log_file_gets_no_progress_bar(monkeypatch):
    assert walk(monkeypatch, io.StringIO(), enabled=True) == ""


def test_a_disabled_bar_shows_nothing(monkeypatch):
    assert walk(monkeypatch, Terminal(), enabled=False) == ""
