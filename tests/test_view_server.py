"""`clearhead view`: what its server answers, to whom, and what it refuses."""

import csv
import io
import json
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from PIL import Image

import clearhead as ch
from clearhead.errors import InputError
from clearhead.inspect.models import Special
from clearhead.observe import Seen
from clearhead.view import Explorer, Pyramid, Scene, Server, pyramid, scene
from clearhead.view.flow import below, top

N, HEADS = 600, 2
EVIL = "<script>document.title = 'owned'</script>"


class Reader(torch.nn.Module):
    """Two layers of attention, sharp enough that rows differ."""

    def __init__(self):
        super().__init__()
        pattern = ch.Softmax(ch.causal())
        self.layers = torch.nn.ModuleList([ch.nn.SelfAttention(16, num_heads=HEADS, mechanism=pattern) for _ in "ab"])

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(2 * x)
        return x


def names():
    found = [f"word{i}" for i in range(N)]
    found[3], found[4], found[5], found[6], found[9] = EVIL, "a\u200b\n\udc80", " ", "=1+1", Special("word9")
    return found


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    model = Reader().eval()
    with ch.watch(model, keep_maps=True) as seen, torch.no_grad():
        model(torch.randn(1, N, 16))
    return Scene("a reader", seen, lambda call: (names(), names()))


@contextmanager
def serving(made, **options):
    with Server(**{"port": 0, **options}) as found:
        thread = threading.Thread(target=found.show, args=[Explorer(made)])
        thread.start()
        try:
            yield found
        finally:
            found.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def live(made):
    with serving(made) as found:
        yield found


def get(live, path, method="GET", headers=None, **parts):
    """The status, headers and body of an answer."""
    connection = HTTPConnection("127.0.0.1", live.server_port, timeout=20)
    connection.request(method, f"{path}?{urlencode(parts)}" if parts else path, headers=headers or {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def told(live, path, **parts):
    status, headers, body = get(live, f"/api/{path}", **parts)
    assert status == 200, body
    assert headers["Content-Type"] == "application/json"
    return json.loads(body)


def values(answer):
    status, headers, body = answer
    assert status == 200, body
    return np.frombuffer(body, "<f4").reshape(int(headers["X-Rows"]), int(headers["X-Columns"]))


def weights(made, layer=1, head=1):
    return made.seen[layer].map.weights()[0, head].double().numpy()


def test_the_model_its_layers_and_every_head_in_numbers(live, made):
    model = told(live, "model")
    assert [each["shape"] for each in model["layers"]] == [[N, N]] * 2
    assert [each["name"] for each in model["layers"]] == ["layers.0", "layers.1"]
    assert (model["title"], model["tile"], model["unseen"]) == ("a reader", 256, {})
    entropy = [record["entropy"]["mean"] for record in model["statistics"]]
    assert entropy == pytest.approx([float(x) for call in made.seen for x in call.statistics.entropy[0].mean(-1)])


@pytest.mark.parametrize("place", [(0, 0, 0), (0, 2, 1), (1, 1, 1), (2, 0, 0)])
def test_tiles_are_means_of_the_weights(live, made, place):
    level, row, column = place
    answer = get(live, "/api/tile", layer=1, head=1, level=level, row=row, column=column)
    assert answer[1]["X-Exact"] == "1"
    assert float(answer[1]["X-Error"]) == 0
    size = 256 << level
    part = weights(made)[row * size : (row + 1) * size, column * size : (column + 1) * size]
    starts = [range(0, n, 1 << level) for n in part.shape]
    wanted = [[part[i : i + (1 << level), j : j + (1 << level)].mean() for j in starts[1]] for i in starts[0]]
    np.testing.assert_allclose(values(answer), wanted, rtol=2e-4, atol=1e-7)


def test_a_sampled_tile_says_so_and_the_exact_one_comes_behind(made, monkeypatch):
    monkeypatch.setattr(pyramid, "_FEW", 0)
    monkeypatch.setattr(pyramid, "BASE", 2)
    monkeypatch.setattr("clearhead.view.sample.PAIRS", 0)
    monkeypatch.setattr(pyramid, "_AT_ONCE", 1 << 14)
    with serving(made) as live:
        parts = {"layer": 0, "head": 0, "level": 2, "row": 0, "column": 0}
        first, errors = get(live, "/api/tile", **parts), get(live, "/api/tile", of="error", **parts)
        assert first[1]["X-Exact"] == "0"
        assert 0 < float(first[1]["X-Error"]) < 1
        deadline = time.monotonic() + 20
        while (last := get(live, "/api/tile", **parts))[1]["X-Exact"] == "0":
            assert time.monotonic() < deadline
        assert last[1]["X-Progress"] == "1.0000"
        off = np.linalg.norm(values(last) - values(first)) / np.linalg.norm(values(first))
        assert 0 < off < 1.5 * float(first[1]["X-Error"])
        assert values(errors).shape == values(first).shape


def test_tokens_go_out_as_json_and_what_does_not_show_is_spelt_out(live):
    _, headers, body = get(live, "/api/tokens", layer=0, side="keys", **{"from": 2, "to": 8})
    assert json.loads(body)["names"] == ["word2", EVIL, r"a\u200b↵\udc80", "␣", "=1+1", "word7"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert told(live, "tokens", layer=0, side="rows", **{"from": N - 1, "to": N + 9})["names"] == [f"word{N - 1}"]


def test_without_names_tokens_are_numbers(made):
    bare = Scene("bare", made.seen, lambda call: (None, None))
    assert bare.tokens(0, "rows", 4, 6) == ["4", "5"]


def test_rows_columns_and_marginals(live, made):
    A = weights(made)
    row = told(live, "row", layer=1, head=1, row=300, most=3)["keys"]
    order = np.argsort(-A[300])[:3]
    assert [each["at"] for each in row] == order.tolist()
    assert [each["name"] for each in row] == [names()[i] for i in order]
    assert [each["weight"] for each in row] == pytest.approx(A[300][order].tolist(), rel=1e-4)
    deadline = time.monotonic() + 20
    while (column := told(live, "column", layer=1, head=1, key=17, most=2))["looked_at"] < N:
        assert time.monotonic() < deadline
    assert [each["at"] for each in column["rows"]] == np.argsort(-A[:, 17])[:2].tolist()
    found = told(live, "marginals", layer=1, head=1, level=1, row=0, column=1)
    assert found["received"] == pytest.approx(A.sum(0)[512:].reshape(-1, 2).mean(1).tolist(), rel=1e-3)
    entropy = -(A * np.log(np.where(A > 0, A, 1))).sum(1)[:512].reshape(-1, 2).mean(1)
    assert found["rows"]["entropy"] == pytest.approx(entropy.tolist(), rel=1e-3, abs=1e-5)


def test_hidden_keys_are_left_out_of_what_a_query_attends_to(live, made):
    A = weights(made)[300]
    for hide, keys in (("first", [0]), ("special", [9]), ("first special", [0, 9])):
        left = A.copy()
        left[keys] = 0
        row = told(live, "row", layer=1, head=1, row=300, most=N, hide=hide)["keys"]
        assert {each["at"] for each in row} == set(np.flatnonzero(left))
        assert sum(each["weight"] for each in row) == pytest.approx(left.sum(), rel=1e-4)


def test_a_part_of_a_row_and_of_a_column(live, made):
    A = weights(made)
    row = told(live, "line", layer=1, head=1, side="rows", at=300, **{"from": 190, "to": 290})
    np.testing.assert_allclose(row["weights"], A[300, 190:290], rtol=1e-4, atol=1e-9)
    column = told(live, "line", layer=1, head=1, side="keys", at=17, **{"from": -50, "to": N + 50})
    assert (column["from"], len(column["weights"])) == (0, N)
    np.testing.assert_allclose(column["weights"], A[:, 17], rtol=1e-4, atol=1e-9)


def rolled(maps, row):
    """A row of rollout, from dense weights in float64."""
    relevance = np.eye(maps[0].shape[-1])[row]
    for heads in reversed(maps):
        relevance = (relevance + relevance @ heads.mean(0)) / 2
    return relevance


def test_flow_is_rollout_and_says_how_much_was_followed(live, made):
    wanted = rolled([call.map.weights()[0].double().numpy() for call in made.seen], 400)
    levels = told(live, "flow", layer=0, row=400, most=N)["levels"]
    assert [level["layer"] for level in levels] == [None, 1, 0]
    found = {each["at"]: each["share"] for each in levels[-1]["tokens"]}
    np.testing.assert_allclose([found.get(i, 0) for i in range(N)], wanted, rtol=1e-4, atol=1e-8)
    assert levels[-1]["followed"] == pytest.approx(1)

    some = told(live, "flow", layer=1, row=400, most=8)["levels"]
    held = {each["at"]: each["share"] for each in some[-1]["tokens"]}
    assert all(share <= wanted[at] * (1 + 1e-4) for at, share in held.items())
    assert 0.3 < some[-1]["followed"] < 1
    assert some[-1]["followed"] == pytest.approx(sum(held.values()))
    assert [len(level["tokens"]) for level in some] == [1, 8, 8]
    A = weights(made, 1, 0) / 2 + weights(made, 1, 1) / 2
    for query, key, share in some[1]["paths"]:
        assert (query, share) == (400, pytest.approx((A[400, key] + (key == 400)) / 2, rel=1e-4))


def test_a_row_that_sees_nothing_keeps_what_it_has():
    torch.manual_seed(0)
    past = ch.Softmax(ch.causal() & ~ch.window(0))
    maps = [past(torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8)) for _ in "ab"]
    level = top(5, 12)
    for A in reversed(maps):
        level = below(A, level, 12)
    dense = [A.weights()[0].double().numpy() for A in maps]
    for heads in dense:
        heads[:, 0, 0] = 1
    found = dict(zip(level.tokens.tolist(), level.shares.tolist(), strict=True))
    np.testing.assert_allclose([found.get(i, 0) for i in range(12)], rolled(dense, 5), atol=1e-7)


def test_where_no_token_can_be_followed(made):
    parts = Scene("some", made.seen, made.names, whole=False)
    with serving(parts) as live:
        status, _, body = get(live, "/api/flow", layer=0, row=0)
    assert (status, json.loads(body)["error"]) == (
        400,
        "what an output rests on needs all layers, and some were left out",
    )
    first, second = made.seen.calls
    crossing = Scene("cross", Seen([first, replace(second, role="cross")]), made.names)
    assert crossing.stack(0) == [0]
    with pytest.raises(InputError, match="cross-attention is no stack of its own"):
        crossing.stack(1)
    with pytest.raises(InputError, match="different numbers of tokens"):
        Scene("uneven", Seen([first, replace(second, shape=(1, 2, 9, 9))]), made.names).stack(0)
    sides = {id(first): "encoder", id(second): "decoder"}
    assert Scene("two", made.seen, made.names, side=lambda call: sides[id(call)]).stack(1) == [1]


def test_the_page_holds_its_model_and_no_word_can_end_it(made):
    history = [{"step": 1, "attention": {"layers.0": {"sink": [0.1, 0.2]}}}]
    titled = Scene(f"</script>{EVIL}$data", made.seen, made.names, history=history)
    with serving(titled) as live:
        text = get(live, "/")[2].decode()
    assert EVIL not in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["title"] == f"</script>{EVIL}$data"
    assert data["heads"]["layers"][0]["path"] == "layers.0"
    assert [data["special"][i] for i in data["layers"][0]["axes"]] == [[9], [9]]
    told = [layer["statistics"]["entropy"] for layer in data["layers"]]
    np.testing.assert_allclose(told, [call.statistics.entropy[0].mean(-1) for call in made.seen], rtol=1e-4)
    assert data["findings"] == titled.findings


def test_search(live):
    found = told(live, "search", layer=0, side="keys", text="WORD1")
    assert found["more"]
    assert [each["at"] for each in found["found"]][:3] == [1, 10, 11]
    later = told(live, "search", layer=0, side="keys", text="word1", after=found["found"][-1]["at"] + 1)
    assert later["found"][0]["at"] > found["found"][-1]["at"]
    assert told(live, "search", layer=0, side="keys", text="nowhere") == {"found": [], "more": False}


def test_a_region_as_a_table_and_as_pixels(live, made):
    parts = {"layer": 1, "head": 1, "level": 0, "row": 2, "to_row": 9, "column": 1, "to_column": 8}
    status, headers, body = get(live, "/api/export.csv", **parts)
    rows = list(csv.reader(io.StringIO(body.decode("utf-8", "backslashreplace"), newline="")))
    assert rows[0][3] == f"3 {EVIL}"
    assert rows[5][0] == "6 =1+1"
    np.testing.assert_allclose([[float(x) for x in row[1:]] for row in rows[1:]], weights(made)[2:9, 1:8], rtol=1e-4)
    status, headers, body = get(live, "/api/export.png", **parts, theme="dark")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    shown, part = np.asarray(Image.open(io.BytesIO(body))), weights(made)[2:9, 1:8]
    assert shown.shape == (7, 7, 3)
    assert shown[part == 0].tolist() == [[0x1E, 0x1D, 0x27]] * int((part == 0).sum())
    assert shown[np.unravel_index(part.argmax(), part.shape)].tolist() == [0xFC, 0xF9, 0xEA]
    coarse = get(live, "/api/export.csv", **{**parts, "level": 2, "to_row": 3, "to_column": 2})[2].decode()
    assert coarse.splitlines()[0] == "query \\ key,4-7"


@pytest.mark.parametrize(
    ("path", "parts", "status", "says"),
    [
        ("/api/tile", {"layer": 0, "head": 0, "level": 0, "row": 9, "column": 0}, 400, "tile row 9 is not there: "),
        ("/api/tile", {"layer": 0, "head": 0, "level": 0, "row": 0}, 400, "column is missing"),
        ("/api/tile", {"layer": "x", "head": 0}, 400, "layer is 'x'; it must be a whole number"),
        ("/api/tile", {"layer": "9" * 5000}, 400, f"layer is '{'9' * 40}'; it must be a whole number"),
        ("/api/tile", {"layer": 7, "head": 0, "level": 0, "row": 0, "column": 0}, 400, "layer 7 is not there"),
        ("/api/tile", {"layer": 0, "head": 5, "level": 0, "row": 0, "column": 0}, 400, "head 5 is not there"),
        ("/api/tokens", {"layer": 0, "side": "x", "from": 0, "to": 1}, 400, "side is 'x': write rows or keys"),
        ("/api/tokens", {"layer": 0, "side": "rows", "from": 0, "to": 10**9}, 400, "1000000000 tokens were asked for"),
        ("/api/search", {"layer": 0, "side": "keys", "text": ""}, 400, "text is empty"),
        ("/api/row", {"layer": 0, "head": 0, "row": 0, "most": 10**9}, 400, "most is 1000000000"),
        ("/api/line", {"layer": 0, "head": 0, "side": "x", "at": 0, "from": 0, "to": 9}, 400, "side is 'x': write"),
        ("/api/line", {"layer": 0, "head": 0, "side": "keys", "at": 600, "from": 0, "to": 9}, 400, "there is nothing"),
        ("/api/line", {"layer": 0, "head": 0, "side": "keys", "at": 0, "from": 0, "to": 10**9}, 400, "1000000000 weig"),
        ("/api/flow", {"layer": 0, "row": 600}, 400, "row 600 is not there: this map has rows 0 … 599"),
        ("/api/flow", {"layer": 0, "row": 0, "most": 0}, 400, "most is 0; it must be from 1 to 1000"),
        ("/api/flow", {"layer": 9, "row": 0}, 400, "layer 9 is not there"),
        ("/api/export.csv", {"layer": 0, "head": 0, "level": 0, "row": 0, "to_row": 2048, "column": 0,
                             "to_column": 2048}, 400, "2048 × 2048 cells are too many"),
        ("/api/export.csv", {"layer": 0, "head": 0, "level": 0, "row": 5, "to_row": 5, "column": 0,
                             "to_column": 2}, 400, "cells 5 … 5 are not there"),
        ("/api/tiles", {}, 404, "there is nothing at '/api/tiles'; did you mean '/api/tile'?"),
        ("/../../etc/passwd", {}, 404, "there is nothing at '/../../etc/passwd'"),
        ("/%2e%2e/server.py", {}, 404, "there is nothing at '/%2e%2e/server.py'"),
        ("/server.py", {}, 404, "there is nothing at '/server.py'"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_said_in_a_line(live, capsys, path, parts, status, says):
    found, _, body = get(live, path, **parts)
    assert found == status
    assert json.loads(body)["error"].startswith(says)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "[::1]:{port}"}, 200),
        ({"Host": "127.0.0.1:{port}", "Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1.evil.example:{port}"}, 403),
        ({"Host": "192.168.0.7:{port}"}, 403),
        ({"Host": "localhost"}, 403),
        ({"Host": "localhost:{port}x"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_other_names_and_other_sites_are_refused(live, headers, status):
    headers = {name: value.format(port=live.server_port) for name, value in headers.items()}
    assert get(live, "/api/model", headers=headers)[0] == status


def test_a_link_from_elsewhere_may_open_the_page_and_nothing_else(live):
    assert get(live, "/", headers={"Sec-Fetch-Site": "cross-site"})[0] == 200
    assert get(live, "/page.js", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403


def test_whoever_opens_it_to_a_network_speaks_to_it_by_address(made):
    with serving(made, host="0.0.0.0") as live:
        for host, status in (("192.168.0.7", 200), (socket.gethostname(), 200), ("evil.example", 403)):
            assert get(live, "/api/model", headers={"Host": f"{host}:{live.server_port}"})[0] == status
        assert live.url == f"http://127.0.0.1:{live.server_port}/"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "X"])
def test_it_takes_nothing_but_reads(live, method):
    status, headers, body = get(live, "/api/model", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert json.loads(body)["error"] == "this server answers GET and HEAD only"


def test_head_is_get_without_a_body(live):
    status, headers, body = get(live, "/api/model", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) == len(get(live, "/api/model")[2])


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/api/model", "/nothing"])
def test_the_page_may_load_nothing_from_elsewhere(live, path):
    policy = get(live, path)[1]["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_what_is_no_http_is_refused(live, capsys):
    with socket.create_connection(("127.0.0.1", live.server_port), timeout=5) as line:
        line.sendall(b"\x16\x03\x01\x00garbage\r\n\r\n")
        assert b"Bad request" in line.recv(1000)
    assert capsys.readouterr().err == ""


def test_a_browser_that_goes_away_leaves_no_trace(live, capsys):
    path = "/api/tile?layer=0&head=1&level=0&row=0&column=0"
    for _ in range(3):
        line = socket.create_connection(("127.0.0.1", live.server_port))
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{live.server_port}\r\n\r\n".encode())
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.close()  # at once, with a reset
    assert get(live, "/api/model")[0] == 200
    assert capsys.readouterr() == ("", "")


def test_what_nobody_waits_for_any_more_is_not_computed(live, made, monkeypatch):
    computed, tile = [], Pyramid.tile
    monkeypatch.setattr(Pyramid, "tile", lambda self, *place: computed.append(place) or tile(self, *place))
    with live.site.studio._computing:  # all others wait
        for row in (1, 0):
            line = socket.create_connection(("127.0.0.1", live.server_port))
            path = f"/api/tile?layer=0&head=1&level=1&row={row}&column=0"
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost:{live.server_port}\r\n\r\n".encode())
            deadline = time.monotonic() + 20
            while live.site.studio._waiting < 2 - row:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if row:
                line.close()
    assert line.recv(15) == b"HTTP/1.1 200 OK"
    line.close()
    while live.site.studio._waiting:
        time.sleep(0.01)
    assert computed == [(1, 0, 0)]


def test_a_defect_is_one_line_and_the_server_goes_on(live, capsys, monkeypatch):
    monkeypatch.setattr(Scene, "layers", lambda self: 1 / 0)
    assert get(live, "/api/model")[0] == 500
    assert capsys.readouterr().err == "error: /api/model: ZeroDivisionError: division by zero\n"
    monkeypatch.undo()
    assert get(live, "/api/model")[0] == 200


def test_the_last_heads_are_kept(live, made, monkeypatch):
    monkeypatch.setattr(scene, "_KEPT", 2)
    for layer, head in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0)):
        told(live, "row", layer=layer, head=head, row=5)
    assert list(live.site.studio._kept) == [(1, 1), (0, 0)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"port": 70000}, "port 70000 is none: write one from 1 to 65535, or 0 for any that is free"),
        ({"host": "192.0.2.1"}, "host '192.0.2.1' is no address of this machine; write --host 127.0.0.1"),
        ({"host": "no such host"}, "host 'no such host' is no address of this machine"),
    ],
)
def test_where_it_cannot_listen(options, says):
    with pytest.raises(InputError) as error:
        Server(**{"port": 0, **options})
    assert str(error.value).startswith(says)


def test_a_port_in_use_is_said_with_one_that_is_free(live):
    with pytest.raises(InputError) as error:
        Server(port=live.server_port)
    words = str(error.value).split()
    assert words[:5] == ["port", str(live.server_port), "is", "in", "use;"]
    free = int(words[words.index("--port") + 1])
    Server(port=free).server_close()
