"""Takes traces as a collector does: collector.py PORT FILE

Reads OTLP over HTTP by the published definitions, and writes each span as a line of JSON.
FILE.slow, where it is there, has it read and never answer.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PORT, FILE = int(sys.argv[1]), sys.argv[2]


def plain(attributes):
    kinds = {"string_value", "int_value", "double_value", "bool_value"}
    values = {}
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        assert kind in kinds, kind
        values[attribute.key] = getattr(attribute.value, kind)
    return values


def spans(request):
    for resource in request.resource_spans:
        of = plain(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield {
                    "resource": of,
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "name": span.name,
                    "kind": span.kind,
                    "begin": span.start_time_unix_nano,
                    "end": span.end_time_unix_nano,
                    "attributes": plain(span.attributes),
                    "links": [link.span_id.hex() for link in span.links],
                    "status": span.status.code,
                    "because": span.status.message,
                }


class Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        while os.path.exists(FILE + ".slow"):
            time.sleep(0.1)
        assert self.path == "/v1/traces", self.path
        assert self.headers["content-type"] == "application/x-protobuf", self.headers
        request = ExportTraceServiceRequest.FromString(body)
        lines = "".join(json.dumps(span) + "\n" for span in spans(request))
        with open(FILE, "a") as file:
            file.write(lines)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Collector).serve_forever()
