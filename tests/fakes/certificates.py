"""Certificates of an authority of our own, as files an operator would have."""

import ssl
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization


class Authority:
    """Makes certificates for localhost; `client` trusts them and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()

    def files(self, name: str = "localhost") -> dict[str, str]:
        """`router.tls` with a new certificate, which has a chain of its own behind it."""
        issued = self._authority.create_child_ca().issue_cert("localhost", "127.0.0.1")
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return {"certificate": str(certificate), "key": str(key)}

    def locked(self, key: str, passphrase: str) -> bytes:
        """The same private key, encrypted."""
        opened = serialization.load_pem_private_key(Path(key).read_bytes(), None)
        return opened.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.BestAvailableEncryption(passphrase.encode()),
        )

    @property
    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context
