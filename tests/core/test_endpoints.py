"""All spellings of one endpoint agree, those of two never do, and what is no URL of one is told what to write."""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv6Address

import httpx
import pytest
from hypothesis import given, settings, strategies as st

from trio_mlxgate.core.aliases import Aliases
from trio_mlxgate.core.endpoints import DEFAULT_PORTS, Endpoint, Loopback, name_as_spelled, shown

EXAMPLES = int(os.environ.get("MLXGATE_EXAMPLES", "200"))
MANY = settings(max_examples=EXAMPLES, deadline=None)

# ---- drawn: an endpoint, and its spellings ----

LABELS = st.from_regex(r"[a-z]([a-z0-9_-]{0,8}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=3).map(".".join).filter(lambda name: name.split(".")[-1] != "localhost")
INTERNATIONAL = st.sampled_from(["münchen.de", "straße.example", "ολα.gr", "例え.jp", "mac-mini.büro"])
IPV4 = st.integers(0, 2**32 - 1).map(IPv4Address)
IPV6 = st.integers(0, 2**128 - 1).map(IPv6Address).filter(lambda address: address.ipv4_mapped is None)
LOOPBACK = st.just("loopback")
HOSTS = st.one_of(NAMES, INTERNATIONAL, IPV4, IPV6, LOOPBACK)
SCHEMES = st.sampled_from(sorted(DEFAULT_PORTS))
PORTS = st.one_of(st.sampled_from([80, 443, 8080]), st.integers(1, 65535))

ANY_LOOPBACK = [
    *("localhost", "LocalHost", "localhost.", "printer.localhost", "%6cocalhost", "127.0.0.1", "127.1", "127.0.1"),
    *("0x7f.1", "0177.0.0.01", "2130706433", "0x7F000001", "[::1]", "[0:0::0:1]", "[::ffff:127.0.0.1]"),
    *("[::FFFF:7f00:1]", "0.0.0.0", "0", "[::]", "[::ffff:0:0]", "127.0.0.1.", "[::1%25lo0]"),
]


def any_case(text: str) -> st.SearchStrategy[str]:
    swap = st.lists(st.booleans(), min_size=len(text), max_size=len(text))
    # Letters whose other case is one letter; the others (as ß) have spellings that are other names.
    return swap.map(
        lambda upper: "".join(
            c.upper() if up and c.upper().lower() == c and len(c.upper()) == 1 else c
            for c, up in zip(text, upper, strict=True)
        )
    )


def percent_encoded(text: str) -> st.SearchStrategy[str]:
    chosen = st.lists(st.booleans(), min_size=len(text), max_size=len(text))
    return chosen.map(
        lambda encode: "".join(
            "".join(f"%{byte:02x}" for byte in c.encode()) if e else c for c, e in zip(text, encode, strict=True)
        )
    )


@st.composite
def ipv4_spelled(draw: st.DrawFn, address: IPv4Address) -> str:
    """As inet_aton reads it: the last of one to four numbers fills what the others leave."""
    value, parts = int(address), draw(st.integers(1, 4))
    numbers = [(value >> (24 - 8 * place)) & 255 for place in range(parts - 1)]
    numbers.append(value & (256 ** (5 - parts) - 1))
    forms = [draw(st.sampled_from(["{:d}", "0{:o}", "00{:o}", "0x{:x}", "0X{:08X}"])) for _ in numbers]
    if draw(st.booleans()) and draw(st.booleans()):
        return f"[::ffff:{address}]"
    return ".".join(form.format(number) for form, number in zip(forms, numbers, strict=True))


@st.composite
def ipv6_spelled(draw: st.DrawFn, address: IPv6Address) -> str:
    text = draw(st.sampled_from([address.compressed, address.exploded]))
    if draw(st.booleans()):
        tail = IPv4Address(int(address) & (2**32 - 1))
        text = f"{address.exploded[:30]}{tail}"  # the last 32 bits may stand as an IPv4 address
    return f"[{draw(any_case(text))}]"


def host_spelled(host: object) -> st.SearchStrategy[str]:
    if isinstance(host, IPv4Address):
        if host in (IPv4Address("0.0.0.0"), IPv4Address("127.0.0.1")):
            return st.sampled_from(ANY_LOOPBACK)
        return ipv4_spelled(host)
    if isinstance(host, IPv6Address):
        return st.sampled_from(ANY_LOOPBACK) if int(host) <= 1 else ipv6_spelled(host)
    if host == "loopback":
        return st.sampled_from(ANY_LOOPBACK)
    dotted = st.sampled_from([f"{host}", f"{host}."])
    return dotted.flatmap(any_case).flatmap(lambda text: st.one_of(st.just(text), percent_encoded(text)))


@st.composite
def spelled(draw: st.DrawFn, host: object, port: int) -> str:
    scheme = draw(SCHEMES)
    user = draw(st.sampled_from(["", "", "user@", "user:secret@", "a@b:c@", ":@"]))
    ports = [f":{port}", f":{port:07d}"]
    if port == DEFAULT_PORTS[scheme]:
        ports += ["", ":"]
    rest = draw(st.sampled_from(["", "/", "/v1", "/v1/", "?q=a@b", "#top", "/a:9/b@c?d=http://e:1/", "//x", "/ä b"]))
    return f"{draw(any_case(scheme))}://{user}{draw(host_spelled(host))}{draw(st.sampled_from(ports))}{rest}"


def same_host(one: object, other: object) -> bool:
    loopback = ("loopback", IPv4Address("0.0.0.0"), IPv4Address("127.0.0.1"), IPv6Address("::"), IPv6Address("::1"))
    return one == other or (one in loopback and other in loopback)


@MANY
@given(st.data(), HOSTS, PORTS)
def test_all_spellings_of_one_endpoint_agree(data: st.DataObject, host: object, port: int) -> None:
    one, other = (Endpoint.from_url(data.draw(spelled(host, port))) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert (one.host, one.port, one.name) == (other.host, other.port, other.name)


@MANY
@given(st.data(), HOSTS, PORTS, HOSTS, PORTS)
def test_another_host_or_port_never_agrees(
    data: st.DataObject, host: object, port: int, host2: object, port2: int
) -> None:
    one, other = Endpoint.from_url(data.draw(spelled(host, port))), Endpoint.from_url(data.draw(spelled(host2, port2)))
    assert (one == other) == (same_host(host, host2) and port == port2)
    # Near misses, which two drawn at random seldom are.
    assert one != Endpoint.from_url(data.draw(spelled(host, port % 65535 + 1)))
    if isinstance(host, IPv4Address | IPv6Address) and int(host) > 2**31:
        assert one != Endpoint.from_url(data.draw(spelled(host - 1, port)))
    if isinstance(host, str) and host != "loopback":
        assert one != Endpoint.from_url(data.draw(spelled(f"a.{host}", port)))


@MANY
@given(st.data(), HOSTS, PORTS, st.sampled_from(["shared", "distinct"]))
def test_the_canonical_url_reads_as_itself(data: st.DataObject, host: object, port: int, loopback: Loopback) -> None:
    endpoint = Endpoint.from_url(data.draw(spelled(host, port)), loopback=loopback)
    again = Endpoint.from_url(str(endpoint), loopback=loopback)
    assert (again.scheme, again.host, again.port) == (endpoint.scheme, endpoint.host, endpoint.port)
    assert str(again) == str(endpoint)
    assert endpoint.host.isascii()
    assert endpoint.host == endpoint.host.lower()
    assert "@" not in str(endpoint)


@MANY
@given(st.data(), HOSTS, PORTS)
def test_a_url_leads_where_httpx_says_it_does(data: st.DataObject, host: object, port: int) -> None:
    url = data.draw(spelled(host, port))
    try:
        request = httpx.Request("GET", url)
    except httpx.InvalidURL:
        return  # old ways to write an address
    assert Endpoint.from_url(str(request.url)) == Endpoint.from_url(url)


@MANY
@given(st.data(), HOSTS, PORTS)
def test_the_name_is_that_of_the_host_as_it_is_written(data: st.DataObject, host: object, port: int) -> None:
    url = data.draw(spelled(host, port))
    name = name_as_spelled(url)
    assert name.removesuffix(f":{port}") in url
    assert Endpoint.from_url(f"http://{name}") == Endpoint.from_url(url)


SECRETS = st.text("SECRET@:/?#%[] ", min_size=1, max_size=12).map(lambda text: f"hush{text}hush")


@MANY
@given(SECRETS, st.sampled_from(["http://u:{}@h:80/x", "http://{}@h", "u:{}@h:80", "http://h?key={}", "http://h#{}"]))
def test_no_message_shows_a_password_or_a_query(secret: str, where: str) -> None:
    url = where.format(secret)
    assert "hush" not in shown(url)
    told: list[BaseException | None] = []
    try:
        Endpoint.from_url(url)
    except ValueError as error:
        told += [error, error.__cause__, None if error.__suppress_context__ else error.__context__]
    assert "hush" not in "".join(map(str, told))


# ---- one by one ----


@pytest.mark.parametrize("host", ANY_LOOPBACK)
def test_the_loopback_is_one_host(host: str) -> None:
    assert str(Endpoint.from_url(f"http://{host}:8080")) == "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST.", "localhost"),
        ("printer.localhost", "printer.localhost"),
        ("127.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("[::]", "[::1]"),
        ("[0::1]", "[::1]"),
    ],
)
def test_the_loopback_may_be_several_hosts(host: str, canonical: str) -> None:
    assert str(Endpoint.from_url(f"http://{host}:8080", loopback="distinct")) == f"http://{canonical}:8080"


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("http://127.0.0.2:8080", "http://127.0.0.2:8080"),
        ("http://localhost.example:8080", "http://localhost.example:8080"),
        ("http://notlocalhost:8080", "http://notlocalhost:8080"),
        ("https://API.Example.com./v1/", "https://api.example.com"),
        ("https://api.example.com:80", "https://api.example.com:80"),
        ("http://api.example.com:80", "http://api.example.com"),
        ("http://user:secret@macmini:8080/v1?a=b@c#d", "http://macmini:8080"),
        ("HTTP://Straße.example", "http://xn--strae-oqa.example"),
        ("http://MÜNCHEN.de", "http://xn--mnchen-3ya.de"),
        ("http://XN--mnchen-3YA.de", "http://xn--mnchen-3ya.de"),
        ("http://m%C3%BCnchen.de", "http://xn--mnchen-3ya.de"),
        ("http://mu\u0308nchen.de", "http://xn--mnchen-3ya.de"),
        ("http://\uff4d\uff41\uff43mini", "http://macmini"),
        ("http://例え。jp", "http://xn--r8jz45g.jp"),
        ("http://192.168.1。20", "http://192.168.1.20"),
        ("http://my_server:80", "http://my_server"),
        ("http://node.1:80", "http://node.1"),
        ("http://[FE80::1%25eth0]:8080", "http://[fe80::1%25eth0]:8080"),
        ("http://[FE80::1%eth0]:8080", "http://[fe80::1%25eth0]:8080"),
        ("http://[fe80::1%2525]:8080", "http://[fe80::1%2525]:8080"),
        ("http://[fe80::1%25]:8080", "http://[fe80::1%2525]:8080"),
        ("http://[2001:DB8::1%25eth0]", "http://[2001:db8::1]"),
        ("http://[64:ff9b::192.0.2.1]", "http://[64:ff9b::c000:201]"),
    ],
)
def test_canonical(url: str, canonical: str) -> None:
    assert str(Endpoint.from_url(url)) == canonical


def test_zones_are_networks_of_their_own() -> None:
    assert Endpoint.from_url("http://[fe80::1%25eth0]") != Endpoint.from_url("http://[fe80::1%25eth1]")
    assert Endpoint.from_url("http://[fe80::1%25eth0]") != Endpoint.from_url("http://[fe80::1]")


def test_the_scheme_plays_no_part_in_which_endpoint_it_is() -> None:
    found = {Endpoint.from_url(f"{scheme}://h:8080") for scheme in DEFAULT_PORTS}
    assert len(found) == 1
    assert Endpoint.from_url("https://h") == Endpoint.from_url("http://h:443") != Endpoint.from_url("http://h")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("macmini:8080", "write 'http://macmini:8080'"),
        ("macmini:8080/v1", "write 'http://macmini:8080'"),
        ("user:secret@macmini:8080", "write 'http://macmini:8080'"),
        ("user:1234/secret@macmini:8080", "write 'http://macmini:8080'"),
        ("localhost", "write 'http://localhost'"),
        ("//macmini", "write 'http://macmini'"),
        ("http:macmini", "write 'http://macmini'"),
        ("https:/macmini", "write 'http://macmini'"),
        ("::1", r"write 'http://\[::1\]'"),
        ("", "write one such as 'http://127.0.0.1:8080'"),
        ("/v1/models", "write one such as 'http://127.0.0.1:8080'"),
        ("a b", "write one such as"),
        ("ftp://macmini", "scheme 'ftp': write one of http, ws, https, wss"),
        ("http+unix://x", "scheme 'http\\+unix'"),
        ("http://", "has no host"),
        ("http:///v1", "has no host"),
        ("http://:8080", "has no host"),
        ("http://.", "has no host"),
        ("http://u:p@/", "has no host"),
        ("http://h:x", "'http://h:x' has no readable port: write a number from 1 to 65535"),
        ("http://h:0", "no readable port"),
        ("http://h:65536", "no readable port"),
        ("http://h:-1", "no readable port"),
        ("http://h:٨٠", "no readable port"),
        ("http://h:80 ", "white space"),
        ("\thttp://h", "white space"),
        ("http://h:80\n", "white space"),
        ("http://::1:8080", "in brackets"),
        ("http://a:b:80", "in brackets"),
        ("http://[::1", "in brackets"),
        ("http://[::1]x", "in brackets"),
        ("http://[::g]", "no IPv6 address"),
        ("http://[127.0.0.1]", "no IPv6 address"),
        ("http://[v1.x]", "no IPv6 address"),
        ("http://[fe80::1%25a/b]", "in brackets"),
        ("http://[fe80::1%]", "no readable zone"),
        ("http://a..b", "no host name"),
        ("http://.a", "no host name"),
        ("http://a...", "no host name"),
        ("http://a b", "no host name"),
        ("http://a\nb", "no host name"),
        ("http://a%2Fb", "no host name"),
        ("http://a%zz", "no host name"),
        ("http://a\\b", "no host name"),
        (f"http://{'a.' * 128}", "no host name"),
        ("http://a%ff", "no international name"),
        ("http://ä_b", "no international name"),
        ("http://256.1.1.1", "no IPv4 address"),
        ("http://1.2.3.4.5", "no IPv4 address"),
        ("http://1.16777216", "no IPv4 address"),
        ("http://4294967296", "no IPv4 address"),
        ("http://09.1.1.1", "no IPv4 address"),
        ("http://0x", "no IPv4 address"),
    ],
)
def test_what_is_no_url_of_an_endpoint_is_told_what_to_write(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        Endpoint.from_url(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", [None, 8080, b"http://h", httpx.URL("http://u:secret@h")])
def test_only_a_string_is_a_url(url: object) -> None:
    with pytest.raises(TypeError, match=r"a string such as .* \(or str\(url\)\), and no") as error:
        Endpoint.from_url(url)  # type: ignore[arg-type]
    assert "secret" not in str(error.value)


def test_the_loopback_is_one_or_several() -> None:
    with pytest.raises(ValueError, match="'shared' or 'distinct', not 'one'"):
        Endpoint.from_url("http://h", loopback="one")  # type: ignore[arg-type]


# ---- aliases ----


def e(number: int) -> Endpoint:
    return Endpoint("http", "h", number)


@MANY
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=12))
def test_every_chain_of_aliases_ends_and_keeps_its_end(pairs: list[tuple[int, int]]) -> None:
    aliases = Aliases()
    model: dict[int, int] = {}
    for alias, target in pairs:
        way = [target]
        while way[-1] in model:
            way.append(model[way[-1]])
        contradicts = alias in model and model[alias] != target
        if alias != target and (contradicts or (alias not in model and alias in way)):
            with pytest.raises(ValueError, match="alias"):
                aliases.with_more([(e(alias), e(target))])
            continue
        if alias != target:
            model[alias] = target
        aliases = aliases.with_more([(e(alias), e(target))])
        for number in range(1, 7):
            end = number
            while end in model:
                end = model[end]
            assert aliases.resolve(e(number)) == e(end)
            assert aliases.target(e(number)) == (e(model[number]) if number in model else None)


def test_aliases_are_refused_whole() -> None:
    aliases = Aliases().with_more([(e(1), e(2)), (e(2), e(3))])
    with pytest.raises(ValueError, match="in a circle: http://h:3 -> http://h:1 -> http://h:2 -> http://h:3; leave"):
        aliases.with_more([(e(4), e(1)), (e(3), e(1))])
    with pytest.raises(ValueError, match="http://h:1 is an alias of http://h:2, and can't be one of http://h:3 too"):
        aliases.with_more([(e(1), e(3))])
    assert aliases.target(e(4)) is None
    assert aliases.with_more([(e(1), e(2)), (e(5), e(5))]) == aliases
