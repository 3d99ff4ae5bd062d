"""Every parser of what comes from outside, and the test that gives it damaged input; one without a test fails here."""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent

FUZZED = {
    # texts
    "modelbox.refs:ModelRef.parse": "fuzz/test_texts.py::test_references",
    "modelbox.refs:parse_path": "fuzz/test_texts.py::test_references",
    "modelbox.refs:parse_digest": "fuzz/test_texts.py::test_digests",
    "modelbox.tokens:Token.parse": "fuzz/test_texts.py::test_tokens",
    "modelbox.runtime.services.callers:CallerService.credentials": "runtime/services/test_access_book.py::"
    "test_any_header_is_read_and_only_good_ones_are_somebody",
    "modelbox.find:parse_where": "fuzz/test_texts.py::test_the_find_language",
    "modelbox.find:parse_order": "fuzz/test_texts.py::test_the_find_language",
    "modelbox.find:parse_columns": "fuzz/test_texts.py::test_the_find_language",
    "modelbox.rules:parse_patterns": "fuzz/test_texts.py::test_rules_and_patterns_of_aliases",
    "modelbox.signing.policy:parse_modes": "fuzz/test_texts.py::test_policies_of_signatures",
    "modelbox.signing.policy:parse_trusted": "fuzz/test_texts.py::test_policies_of_signatures",
    "modelbox.cli.retention:_best": "fuzz/test_texts.py::test_retention_durations_and_times_of_commands",
    "modelbox.cli.run:seconds_of": "fuzz/test_texts.py::test_retention_durations_and_times_of_commands",
    "modelbox.cli.run:time_of": "fuzz/test_texts.py::test_retention_durations_and_times_of_commands",
    "modelbox.cli.run:text_pairs": "fuzz/test_texts.py::test_pairs_of_commands",
    "modelbox.runtime.services.paging:decode_key": "fuzz/test_texts.py::test_page_tokens",
    "modelbox.runtime.rest.files:parse_range": "fuzz/test_texts.py::test_ranges",
    "modelbox.runtime.caller:given_request_id": "fuzz/test_texts.py::test_request_ids",
    # configuration
    "modelbox.config:load_client_config": "fuzz/test_configuration.py::test_files_of_configuration",
    "modelbox.runtime.config:load_server_config": "fuzz/test_configuration.py::test_files_of_configuration",
    "modelbox.sidecar.config:load_sidecar_config": "fuzz/test_configuration.py::test_variables_and_arguments",
    "modelbox._serving.settings:Settings.read": "fuzz/test_configuration.py::test_variables_and_arguments",
    "modelbox.sidecar.model_settings:read_model_tables": "fuzz/test_configuration.py::test_files_of_configuration",
    # messages, headers, frames
    "modelbox._wire:decode_message": "fuzz/test_messages.py::test_messages_of_both_codecs",
    "modelbox._serving.messages:decode_google": "fuzz/test_messages.py::test_messages_of_both_codecs",
    "modelbox._wire.errors:unpack_error": "fuzz/test_messages.py::test_the_trailer_of_errors",
    "modelbox._serving.headers:HeaderDecoder": "fuzz/test_messages.py::test_header_blocks",
    "modelbox._serving.peers:peer_of": "_serving/test_peers.py::test_no_text_is_a_name_of_two_kinds",
    "modelbox._serving.proxies:TrustedProxies.caller": "_serving/test_proxies.py::"
    "test_any_header_gives_the_peer_or_an_address",
    "modelbox._serving.proxies:read_networks": "_serving/test_proxies.py::test_any_setting_is_read_or_refused",
    "modelbox._tls:_validity": "test_tls.py::test_garbage_is_no_certificate",
    "modelbox._frames:FrameReader": "fuzz/test_messages.py::test_frames",
    "modelbox._frames:json_body": "fuzz/test_messages.py::test_frames",
    "modelbox._tensors:parse_layout": "fuzz/test_messages.py::test_tensors_of_frames",
    "modelbox.objects:from_json": "fuzz/test_messages.py::test_objects_as_json",
    "modelbox.manifest:Manifest.from_json": "fuzz/test_messages.py::test_manifests",
    "modelbox.runtime.rest.bodies:int_of": "fuzz/test_messages.py::test_query_parameters",
    "modelbox.runtime.rest.bodies:time_of": "fuzz/test_messages.py::test_query_parameters",
    "modelbox.runtime.rest.boundary:_check_origin": "fuzz/test_messages.py::test_origins_and_hosts",
    "modelbox._transport.direct:direct_parts": "fuzz/test_messages.py::test_answers_to_uploads",
    # the open inference protocol
    "modelbox.sidecar.oip.binary:read_body": "fuzz/test_messages.py::test_bodies_of_the_inference_protocol",
    "modelbox.sidecar.oip.binary:parse_header_length": "fuzz/test_messages.py::test_bodies_of_the_inference_protocol",
    "modelbox.sidecar.oip.json_body:read_infer": "sidecar/oip/test_binary.py::test_any_tensor_is_read_or_an_error",
    "modelbox.sidecar.oip.json_body:read_region": "sidecar/oip/test_binary.py::test_any_tensor_is_read_or_an_error",
    "modelbox.sidecar.oip.large_json:read_document": "sidecar/oip/test_large_json.py::test_damaged_documents",
    "modelbox.sidecar.oip.tensors:decode_raw": "sidecar/oip/test_tensors.py::test_raw_garbage_is_an_array_or_an_error",
    "modelbox.sidecar.oip.messages:read_request": "fuzz/test_messages.py::test_messages_of_the_inference_protocol",
    "modelbox.sidecar.oip.http_connection:parse_head": "fuzz/test_messages.py::test_heads_of_requests",
    "modelbox.sidecar.images:ImageInput.decode": "fuzz/test_messages.py::test_images",
    # models
    "modelbox.loader.onnx_scan:scan": "loader/test_onnx_scan.py::test_mutated_models_never_crash_the_scan",
    "modelbox.loader.protobuf_wire:fields": "loader/test_onnx_scan.py::test_mutated_models_never_crash_the_scan",
    "modelbox.loader.safetensors:read_header": "fuzz/test_messages.py::test_headers_of_safetensors",
    "modelbox.signing:Bundle.from_json": "signing/test_bundle.py::test_no_value_in_any_place_does_more_than_be_refused",
    "modelbox.signing:read_statement": "signing/test_bundle.py::test_no_value_in_any_place_does_more_than_be_refused",
    # files of ours
    "modelbox.signing:SigningKey.load": "fuzz/test_files.py::test_key_files",
    "modelbox.signing.trust:Trust.check": "fuzz/test_files.py::test_key_files",
    "modelbox.resume:ResumeFile": "fuzz/test_files.py::test_resume_files",
    "modelbox.loader.cache_state:load_state": "fuzz/test_files.py::test_states_of_the_cache",
    "modelbox.spool.format:decode": "fuzz/test_files.py::test_records_of_a_spool",
    "modelbox.spool.operations:operations_of": "fuzz/test_files.py::test_records_of_a_spool",
    "modelbox.spool.reader:Spool": "fuzz/test_files.py::test_spools_that_were_left_behind",
    "modelbox.spool.reader:read_about": "fuzz/test_files.py::test_spools_that_were_left_behind",
    "modelbox.runtime.moving.manifest:read_manifest": "fuzz/test_files.py::test_manifests_of_exports",
    "modelbox.runtime.moving.lines:read_rows": "fuzz/test_files.py::test_lines_of_exports",
    "modelbox.runtime.moving.lines:count_rows": "fuzz/test_files.py::test_lines_of_exports",
    "modelbox.cli.audit_verify:read_export": "fuzz/test_files.py::test_exports_of_the_audit_log",
}


@cache
def fuzz_tests(file: str) -> frozenset[str]:
    """The tests of a file that are given drawn input."""
    found = set()
    for node in ast.parse((HERE / file).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            called = [one.func for one in node.decorator_list if isinstance(one, ast.Call)]
            if any(isinstance(name, ast.Name) and name.id == "given" for name in called):
                found.add(node.name)
    return frozenset(found)


@pytest.mark.parametrize("parser", FUZZED)
def test_every_parser_has_its_fuzz_test(parser: str) -> None:
    module, _, path = parser.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    assert callable(found)
    file, _, test = FUZZED[parser].partition("::")
    assert test in fuzz_tests(file)


def test_every_fuzz_test_is_in_the_table() -> None:
    named = set(FUZZED.values())
    with_parametrized = {"test_answers_to_uploads"}
    for file in sorted((HERE / "fuzz").glob("test_*.py")):
        for test in fuzz_tests(f"fuzz/{file.name}"):
            assert f"fuzz/{file.name}::{test}" in named or test in with_parametrized
