"""Interactive figures: the first state is the static figure, a bad entry is survived, typing asks for one drawing."""

import base64
import re
import time

import matplotlib.pyplot as plt
import pytest
from IPython.core.pylabtools import print_figure
from jupyter_client.manager import start_new_kernel

from course_utils import CourseError
from course_utils.lesson.widgets import explore
from course_utils.plots import alt_text, style

pytestmark = pytest.mark.quick


def line(height=2.0, colour="black"):
    if height < 0:
        raise CourseError("Expected a height of at least 0.")
    _, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, height], color=colour)
    ax.set_title("A <line> rises", loc="left")
    ax.set(xlabel="time (s)", ylabel="height (m)")
    if height == 13:
        raise RuntimeError("unlucky\nand more")
    return ax


def test_the_first_state_is_the_static_figure_to_the_byte():
    static = line()
    expected = print_figure(static.figure, fmt="png", bbox_inches="tight")
    plt.close(static.figure)
    html = explore(line, height=(-5.0, 20.0)).picture.value
    assert base64.b64decode(re.search(r"base64,([^\"]+)", html).group(1)) == expected
    assert 'alt="A &lt;line&gt; rises. Axes: time (s), height (m)"' in html


def test_a_change_draws_and_no_figure_stays_open():
    before = plt.get_fignums()
    widget = explore(line, height=(-5.0, 20.0), colour=["black", "red"])
    first = widget.picture.value
    widget.children[1].value = "red"
    assert widget.picture.value != first
    assert plt.get_fignums() == before


@pytest.mark.parametrize(("entry", "sentence"), [(-1, "at least 0"), (13, "RuntimeError: unlucky")])
def test_a_bad_entry_is_answered_and_the_next_one_works(entry, sentence):
    before = plt.get_fignums()
    widget = explore(line, height=(-5.0, 20.0))
    first = widget.picture.value
    widget.children[0].value = entry
    assert sentence in widget.status.value
    assert "and more" not in widget.status.value
    assert widget.picture.value == first
    assert plt.get_fignums() == before
    widget.children[0].value = 3
    assert widget.status.value == ""
    assert widget.picture.value != first


def test_dollar_signs_are_text_and_an_earlier_figure_says_that_it_is_one():
    def titled(title="$$"):
        with style():
            ax = line()
            ax.set_title(title)
            ax.set_xticks([0, 1], [title, "x"])
        return ax

    widget = explore(titled, title=str)
    assert widget.status.value == ""
    assert "Below: the last one" in bad_entry(widget)


def bad_entry(widget):
    widget._draw = lambda **named: line(height=-1)
    widget.redraw()
    return widget.status.value


def test_text_is_escaped_and_a_result_shows_itself():
    class Result:
        def _repr_html_(self):
            return "<b>mine</b>"

    assert explore(lambda text="<i>": text, text=str).picture.value == "<pre>&lt;i&gt;</pre>"
    assert explore(lambda n=1: Result(), n=(0, 2)).picture.value == "<b>mine</b>"
    assert "let it end with" in explore(lambda n=1: None, n=(0, 2)).status.value


def test_parameters_without_control_keep_their_defaults():
    assert explore(lambda a=1, b=2: f"{a} {b}", a=(0, 3)).picture.value == "<pre>1 2</pre>"


@pytest.mark.parametrize(
    ("controls", "sentence"),
    [
        ({}, "got none"),
        ({"x": 3}, "got x"),
        ({"height": (5.0, 9.0)}, "offers its default"),
        ({"height": object()}, "value widget for height"),
    ],
)
def test_a_wrong_set_up_is_refused_with_a_sentence(controls, sentence):
    with pytest.raises(CourseError, match=sentence):
        explore(line, **controls)


def test_alternative_text_of_a_figure_without_titles():
    assert alt_text(plt.figure()) == "Figure without a title"
    plt.close()


def test_typing_in_a_real_kernel_draws_once_and_says_that_it_works():
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.execute(
            "from course_utils.lesson.widgets import explore\n"
            "widget = explore(lambda text='': text.upper(), text=str)\n"
            "print(widget.children[0].model_id, widget.status.model_id, widget.picture.model_id)"
        )
        shown = _until(client, lambda m: m["msg_type"] == "stream")
        box, status, picture = shown[-1]["content"]["text"].split()
        for typed in ("w", "wo", "wor", "word"):
            data = {"method": "update", "state": {"value": typed}, "buffer_paths": []}
            client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": box, "data": data}))
            time.sleep(0.05)
        messages = _until(client, lambda m: _state(m, picture) is not None)
        time.sleep(1)
        while client.iopub_channel.msg_ready():
            messages.append(client.get_iopub_msg(timeout=1))
        assert [s for m in messages if (s := _state(m, picture)) is not None] == ["<pre>WORD</pre>"]
        assert [s for m in messages if (s := _state(m, status))][-1] == "<em>working …</em>"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_figure_that_a_kernel_shows_says_what_it_shows():
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        for code in ('_ = plot_bars(["a"], [1.0], unit="nats", title="One bar")', "_.figure"):
            client.execute("from course_utils.plots import plot_bars\n" + code)
            shown = _until(client, lambda m: m["msg_type"] in ("display_data", "execute_result"))[-1]["content"]
            assert shown["metadata"]["image/png"]["alt"] == "One bar. Axes: effect (nats)"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_bar_is_shown_as_text_and_leaves_nothing_that_a_reopened_notebook_could_not_show(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)  # for the kernel, too
    manager, client = start_new_kernel(kernel_name="python3")
    slowly = "for _ in range(3):\n        time.sleep(0.2)\n        bar.update()"
    try:
        client.execute(f"""import time
from course_utils._progress import progress
with progress(3, "steps", delay=0.1) as bar:
    {slowly}
print("done")
""")
        messages = _until(client, lambda m: m["msg_type"] in ("stream", "error"))
        assert messages[-1]["content"].get("text") == "done\n"
        assert "comm_open" not in {m["msg_type"] for m in messages}
        shown = [m["content"] for m in messages if m["msg_type"].endswith("display_data")]
        assert {*shown[0]["data"]} == {"text/plain"}
        assert "steps" in shown[0]["data"]["text/plain"]
        assert shown[-1]["data"] == {}
        assert len({one["transient"]["display_id"] for one in shown}) == 1
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _state(message, comm):
    content = message["content"]
    ours = message["msg_type"] == "comm_msg" and content["comm_id"] == comm
    return content["data"].get("state", {}).get("value") if ours else None


def _until(client, wanted):
    messages = []
    while not messages or not wanted(messages[-1]):
        messages.append(client.get_iopub_msg(timeout=30))
    return messages
