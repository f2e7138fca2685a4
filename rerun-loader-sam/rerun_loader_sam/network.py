"""How the network is reached from where somebody asks. Standard library only, and little of it."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLES = (
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
)


def network_variables(environ: "Mapping[str, str]") -> dict[str, str]:
    """Those of `environ` that name proxies and certificates: a shell may have others than a service has."""
    return {name: environ[name] for name in _VARIABLES if name in environ}


def with_network_of(environ: "Mapping[str, str]", other: "Mapping[str, str]") -> dict[str, str]:
    """`environ` with the proxies and certificates of `other`, and none of its own."""
    return {name: value for name, value in environ.items() if name not in _VARIABLES} | network_variables(other)
