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


def test_a_terminal_sees_what_is_done_how_far_and_how_fast(monkeypatch):
    shown = walk(monkeypatch, Terminal(), enabled=True)
    assert "prepare images" in shown
    assert "3/3" in shown


def test_a_log_file_sees_nothing(monkeypatch):
    assert walk(monkeypatch, io.StringIO(), enabled=True) == ""


def test_a_terminal_sees_nothing_where_the_bar_is_off(monkeypatch):
    assert walk(monkeypatch, Terminal(), enabled=False) == ""
