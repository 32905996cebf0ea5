"""The PEM files of `router.tls` as what a server, or a client of this machine, needs of them.

Called by the router, and by launcher verbs that check the files or ask the endpoint. Errors name
the file and what is wrong with it, never its content.
"""

import ssl
from pathlib import Path

from router.config.models import TlsConfig
from router.errors import StartError


def server_context(tls: TlsConfig) -> ssl.SSLContext:
    """What connections are accepted with. Raises StartError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    for field, path in (("certificate", tls.certificate), ("key", tls.key)):
        _require_readable(field, path)
    try:
        context.load_cert_chain(tls.certificate, tls.key, _refuse_to_ask)
    except _Encrypted:
        raise _wrong("key", tls.key, "an encrypted key", "one without a passphrase") from None
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            found, expected = "the key of another certificate", f"that of {tls.certificate}"
            raise _wrong("key", tls.key, found, expected) from None
        field = "key" if _is_certificate(tls.certificate) else "certificate"
        path, expected = getattr(tls, field), f"a {field.replace('key', 'private key')} in PEM"
        raise _wrong(field, path, "no such thing that can be read", expected) from None
    return context


def client_context(tls: TlsConfig) -> ssl.SSLContext:
    """Trusts the endpoint's own certificate and no other, by whatever name it is reached."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _require_readable("certificate", tls.certificate)
    try:
        context.load_verify_locations(tls.certificate)
    except ssl.SSLError:
        found, expected = "no such thing that can be read", "a certificate in PEM"
        raise _wrong("certificate", tls.certificate, found, expected) from None
    return context


class _Encrypted(Exception):
    """OpenSSL would ask for a passphrase at the terminal."""


def _refuse_to_ask() -> str:
    raise _Encrypted


def _require_readable(field: str, path: str) -> None:
    try:
        with open(path, "rb"):
            return
    except OSError as exc:
        reason = f"a file that cannot be read ({exc.strerror})"
        raise _wrong(field, path, reason, "a PEM file") from exc


def _is_certificate(path: str) -> bool:
    try:
        ssl.PEM_cert_to_DER_cert(_first_certificate(Path(path).read_text("ascii", "replace")))
    except ValueError:
        return False
    return True


def _first_certificate(text: str) -> str:
    return text[: text.find(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)][text.find(ssl.PEM_HEADER) :]


def _wrong(field: str, path: str, found: str, expected: str) -> StartError:
    return StartError(f"router.tls.{field}: {path}: found {found}, expected {expected}")
