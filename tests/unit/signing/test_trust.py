"""Whose signature counts, and for what: every way in which one may be somebody else's, or about something else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from modelbox.errors import ConfigError, IntegrityError, InvalidError, SignatureRefused
from modelbox.objects import ModelVersion
from modelbox.refs import ModelRef
from modelbox.signing import (
    Bundle,
    Mode,
    ModeRule,
    SignaturePolicy,
    SigningKey,
    Trust,
    TrustedFile,
    check_bundle,
    create_key,
    matches,
    parse_modes,
    parse_trusted,
    subject_of,
)
from tests.model_source import manifest_of, version_of
from tests.signing import Keys, make_authority, make_keys, make_signer, signed

MANIFEST = manifest_of({"model.onnx": b"onnx", "golden/inputs.npz": b"npz"})
VERSION = version_of(MANIFEST, version=7)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


def refusal(trust: Trust, version: ModelVersion) -> str:
    with pytest.raises(SignatureRefused) as caught:
        trust.verify(version)
    reason = caught.value.fields["reason"]
    assert str(caught.value).startswith(f"{reason}: ")
    return str(reason)


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_a_signature_by_a_trusted_key_counts(tmp_path: Path, kind: str) -> None:
    keys = make_keys(tmp_path, kind=kind)
    by = keys.trust().verify(signed(VERSION, keys.signing))
    assert by.key_id == keys.signing.key_id
    assert keys.signing.has_signed(signed(VERSION, keys.signing))
    assert not keys.signing.has_signed(VERSION)


def test_nothing_counts_as_signed_that_is_not(keys: Keys) -> None:
    assert refusal(keys.trust(), VERSION) == "NOT_SIGNED"


def test_a_signature_by_another_key_does_not_count(keys: Keys, tmp_path: Path) -> None:
    other = make_keys(tmp_path, "other")
    assert refusal(keys.trust(), signed(VERSION, other.signing)) == "NOT_TRUSTED"


def test_a_key_may_be_trusted_for_some_models_only(keys: Keys) -> None:
    version = signed(VERSION, keys.signing)
    assert keys.trust("ns").verify(version).key_id
    assert keys.trust("ns/mod*").verify(version).key_id
    assert refusal(keys.trust("other/*"), version) == "NOT_TRUSTED"


def test_a_key_that_only_claims_to_be_a_trusted_one_does_not_count(keys: Keys, tmp_path: Path) -> None:
    other = make_keys(tmp_path, "other")
    forged = replace(Bundle.from_json(signed(VERSION, other.signing).bundle), key_id=keys.signing.key_id)
    assert refusal(keys.trust(), replace(VERSION, bundle=forged.to_json())) == "BAD_SIGNATURE"


def test_a_hint_is_not_needed(keys: Keys) -> None:
    bundle = replace(Bundle.from_json(signed(VERSION, keys.signing).bundle), key_id="")
    assert keys.trust().verify(replace(VERSION, bundle=bundle.to_json())).key_id


@pytest.mark.parametrize(
    "other",
    [
        version_of(MANIFEST, version=8),
        version_of(MANIFEST, version=7, model="other"),
        version_of(MANIFEST, version=7, namespace="other"),
        version_of(manifest_of({"model.onnx": b"onnx"}), version=7),
        version_of(manifest_of({"model.onnx": b"evil", "golden/inputs.npz": b"npz"}), version=7),
        # The same files, read in another way.
        version_of(replace(MANIFEST, entrypoint="model.onnx"), version=7),
        version_of(replace(MANIFEST, framework="other"), version=7),
    ],
    ids=["number", "model", "namespace", "fewer", "bytes", "entrypoint", "framework"],
)
def test_a_valid_signature_of_something_else_does_not_count(keys: Keys, other: ModelVersion) -> None:
    bundle = signed(VERSION, keys.signing).bundle
    assert refusal(keys.trust(), replace(other, bundle=bundle)) == "SUBJECT_MISMATCH"
    with pytest.raises(InvalidError, match="is not one of"):
        check_bundle(bundle, subject_of(other.namespace, other.model, other.version), other.manifest)


def test_every_bit_of_a_signed_statement_counts(keys: Keys) -> None:
    bundle = Bundle.from_json(signed(VERSION, keys.signing).bundle)
    for at in range(0, len(bundle.payload), 7):
        payload = bytearray(bundle.payload)
        payload[at] ^= 1
        altered = replace(VERSION, bundle=replace(bundle, payload=bytes(payload)).to_json())
        assert refusal(keys.trust(), altered) == "BAD_SIGNATURE"


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"mediaType":1}', "[" * 100_000, "\0", "{}{}"])
def test_what_is_no_bundle_is_refused(keys: Keys, text: str) -> None:
    assert refusal(keys.trust(), replace(VERSION, bundle=text)) == "BAD_SIGNATURE"


def test_a_bundle_whose_keys_come_twice_is_refused(keys: Keys) -> None:
    text = signed(VERSION, keys.signing).bundle
    assert text.startswith('{"mediaType":')
    assert refusal(keys.trust(), replace(VERSION, bundle='{"mediaType":"x",' + text[1:])) == "BAD_SIGNATURE"


def test_two_signatures_in_one_envelope_are_refused(keys: Keys) -> None:
    raw = json.loads(signed(VERSION, keys.signing).bundle)
    raw["dsseEnvelope"]["signatures"] *= 2
    assert refusal(keys.trust(), replace(VERSION, bundle=json.dumps(raw))) == "BAD_SIGNATURE"


# -- certificates --------------------------------------------------------------------------------------------------


def test_a_certificate_counts_that_a_trusted_root_vouches_for(tmp_path: Path) -> None:
    root = make_authority("root")
    between = make_authority("between", by=root)
    key = make_signer(tmp_path, between, between=[between])
    trust = Trust(roots=[TrustedFile(path=root.write(tmp_path / "root.pem"))])
    by = trust.verify(signed(VERSION, key))
    assert (by.name, by.key_id) == ("CN=release bot", key.key_id)
    assert key.has_signed(signed(VERSION, key))


def test_a_root_that_comes_with_the_signature_is_no_reason_to_trust_it(tmp_path: Path) -> None:
    root, other = make_authority("root"), make_authority("root")
    trust = Trust(roots=[TrustedFile(path=root.write(tmp_path / "root.pem"))])
    assert refusal(trust, signed(VERSION, make_signer(tmp_path, other, between=[other]))) == "NOT_TRUSTED"
    assert refusal(Trust(), signed(VERSION, make_signer(tmp_path, other, name="another"))) == "NOT_TRUSTED"


def test_a_missing_link_and_a_link_that_is_no_authority_break_a_chain(tmp_path: Path) -> None:
    root = make_authority("root")
    between, nobody = make_authority("between", by=root), make_authority("nobody", by=root, ca=False)
    trust = Trust(roots=[TrustedFile(path=root.write(tmp_path / "root.pem"))])
    assert refusal(trust, signed(VERSION, make_signer(tmp_path, between, name="a"))) == "NOT_TRUSTED"
    assert refusal(trust, signed(VERSION, make_signer(tmp_path, nobody, name="b", between=[nobody]))) == "NOT_TRUSTED"


def test_a_certificate_for_something_else_does_not_count(tmp_path: Path) -> None:
    root = make_authority("root")
    trust = Trust(roots=[TrustedFile(path=root.write(tmp_path / "root.pem"))])
    web = make_signer(tmp_path, root, name="web", purposes=[ExtendedKeyUsageOID.SERVER_AUTH])
    assert refusal(trust, signed(VERSION, web)) == "NOT_TRUSTED"
    assert trust.verify(signed(VERSION, make_signer(tmp_path, root, name="plain", purposes=[]))).key_id


def test_a_root_may_be_trusted_for_some_models_only(tmp_path: Path) -> None:
    root = make_authority("root")
    trust = Trust(roots=[TrustedFile(path=root.write(tmp_path / "root.pem"), pattern="other")])
    assert refusal(trust, signed(VERSION, make_signer(tmp_path, root))) == "NOT_TRUSTED"


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_trusted_file_is_read_anew_and_counts_as_it_was_while_it_is_broken(keys: Keys, tmp_path: Path) -> None:
    file = tmp_path / "trusted.pub"
    file.write_bytes(keys.public.read_bytes())
    trust = Trust(keys=[TrustedFile(path=file)])
    version = signed(VERSION, keys.signing)
    assert trust.verify(version).key_id
    file.write_text("half a file")
    assert trust.verify(version).key_id
    file.write_bytes(make_keys(tmp_path, "other").public.read_bytes())
    assert refusal(trust, version) == "NOT_TRUSTED"


def test_a_trusted_file_that_was_never_readable_is_an_error(tmp_path: Path) -> None:
    for name, content in (("no.pub", None), ("bad.pub", b"nonsense"), ("long.pub", b"x" * (2 << 20))):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            Trust(keys=[TrustedFile(path=tmp_path / name)]).check()
        with pytest.raises(ConfigError, match=name):
            Trust(roots=[TrustedFile(path=tmp_path / name)]).check()


def test_a_private_key_is_made_for_its_owner_only_and_never_over_another(tmp_path: Path) -> None:
    made = create_key(tmp_path / "key")
    assert made.private.stat().st_mode & 0o777 == 0o600
    before = made.private.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        create_key(tmp_path / "key")
    made.public.unlink()
    with pytest.raises(ConfigError, match="exists already"):
        create_key(tmp_path / "key")
    assert made.private.read_bytes() == before
    made.private.chmod(0o644)
    with pytest.raises(ConfigError, match="everybody"):
        SigningKey.load(made.private)


def test_an_encrypted_key_needs_its_password_and_errors_show_nothing_of_it(tmp_path: Path) -> None:
    made = create_key(tmp_path / "key", password="correct horse")
    key = SigningKey.load(made.private, password="correct horse")
    assert key.key_id == made.key_id
    for password in (None, "battery staple"):
        with pytest.raises(ConfigError) as caught:
            SigningKey.load(made.private, password=password)
        text = f"{caught.value!r} {caught.value} {caught.value.fields} {key!r}"
        assert "horse" not in text
        assert "staple" not in text
    with pytest.raises(ConfigError, match="cannot sign"):
        SigningKey.load(make_public_as_private(tmp_path, made.public))


def make_public_as_private(tmp_path: Path, public: Path) -> Path:
    path = tmp_path / "public-as-private"
    path.write_bytes(public.read_bytes())
    path.chmod(0o600)
    return path


def test_a_certificate_of_another_key_is_refused_when_signing(tmp_path: Path) -> None:
    root = make_authority("root").write(tmp_path / "root.pem")
    made = create_key(tmp_path / "key")
    with pytest.raises(ConfigError, match="is not one of the key"):
        SigningKey.load(made.private, certificates=[root])


# -- policy --------------------------------------------------------------------------------------------------------


def test_modes_and_trusted_files_read_as_they_are_written(tmp_path: Path) -> None:
    assert parse_modes("require") == (ModeRule(mode=Mode.REQUIRE),)
    assert parse_modes("langtech/*=require, *=warn") == (
        ModeRule(mode=Mode.REQUIRE, pattern="langtech/*"),
        ModeRule(mode=Mode.WARN),
    )
    assert parse_modes("") == ()
    assert parse_trusted(f"{tmp_path}/a=b.pub, langtech={tmp_path}/c.pub") == (
        TrustedFile(path=tmp_path / "a=b.pub"),
        TrustedFile(path=tmp_path / "c.pub", pattern="langtech"),
    )
    for text in ("requir", "a=b", "x y=warn", "/etc=warn", "A=off"):
        with pytest.raises(InvalidError):
            parse_modes(text)
    for text in ("key.pub", "a b=/key.pub", "langtech=key.pub"):
        with pytest.raises(InvalidError):
            parse_trusted(text)


def test_a_pattern_without_a_slash_is_a_namespace() -> None:
    assert matches("*", "langtech/wav2vec")
    assert matches("langtech", "langtech/wav2vec")
    assert matches("lang*", "langtech/wav2vec")
    assert matches("langtech/wav*", "langtech/wav2vec")
    assert not matches("lang", "langtech/wav2vec")
    assert not matches("langtech/wav", "langtech/wav2vec")


def test_the_first_rule_that_fits_decides(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    policy = SignaturePolicy(parse_modes("ns/model=require,ns=warn"), keys.trust())
    policy.open()
    with pytest.raises(SignatureRefused):
        policy.check(ModelRef.parse("ns/model@prod"), VERSION)
    by = policy.check(ModelRef.parse("ns/model@prod"), signed(VERSION, keys.signing))
    assert by is not None
    other = version_of(MANIFEST, model="other")
    assert policy.check(ModelRef.parse("ns/other@prod"), other) is None
    assert "NOT_SIGNED" in caplog.text
    caplog.clear()
    assert policy.check(ModelRef.parse("elsewhere/model@prod"), version_of(MANIFEST, namespace="elsewhere")) is None
    assert not caplog.text


def test_requiring_signatures_needs_somebody_to_trust() -> None:
    with pytest.raises(ConfigError, match="trusted_keys"):
        SignaturePolicy(parse_modes("require")).open()
    SignaturePolicy(parse_modes("off")).open()


@pytest.mark.parametrize("ref", ["ns/other@prod", "other/model@prod", "ns/model@8", f"ns/model@sha256:{'0' * 64}"])
def test_an_answer_about_something_else_is_refused_under_every_policy(keys: Keys, ref: str) -> None:
    for modes in ("", "warn", "require"):
        with pytest.raises(IntegrityError, match="SUBJECT_MISMATCH"):
            SignaturePolicy(parse_modes(modes), keys.trust()).check(ModelRef.parse(ref), signed(VERSION, keys.signing))


def test_an_answer_whose_manifest_is_another_one_is_refused(keys: Keys) -> None:
    lied = replace(signed(VERSION, keys.signing), manifest=manifest_of({"model.onnx": b"evil"}))
    with pytest.raises(IntegrityError, match="its manifest is"):
        SignaturePolicy().check(ModelRef.parse("ns/model@7"), lied)
